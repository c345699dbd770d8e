"""Pictures: what is drawn follows from the shape, files are whole or absent, and nothing global is touched."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from boltzmix.compose.draw import Draw, RunInfo
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.pictures import animate_states, image_sheet, plot_states
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.smc import SMC


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def collections(figure):
    return sum(len(ax.collections) for ax in figure.axes)


def images(figure):
    return [image for ax in figure.axes for image in ax.images]


def test_points_become_a_scatter_of_exactly_these_points(generator):
    x = torch.randn(50, 2, generator=generator)
    figure = plot_states(x)
    (drawn,) = (c for ax in figure.axes for c in ax.collections)
    torch.testing.assert_close(torch.from_numpy(drawn.get_offsets().data).float(), x)
    low, high = figure.axes[0].get_xlim()
    assert low <= float(x[:, 0].min())
    assert float(x[:, 0].max()) <= high


def test_very_many_points_become_a_density(generator):
    figure = plot_states(torch.randn(30_000, 2, generator=generator))
    (mesh,) = (c for ax in figure.axes for c in ax.collections)
    assert type(mesh).__name__ == "QuadMesh"


@pytest.mark.parametrize("shape", [(10, 5, 6), (10, 1, 5, 6), (10, 3, 5, 6)])
def test_images_become_one_sheet(shape, generator):
    figure = plot_states(torch.rand(shape, generator=generator), most=4, columns=2)
    (sheet,) = images(figure)
    assert sheet.get_array().shape == (2 * 5 + 1, 2 * 6 + 1, 3)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3), (40, 7, 2, 2), (40, 1, 6)])
def test_anything_else_becomes_histograms(shape, generator):
    figure = plot_states(torch.randn(shape, generator=generator))
    assert not images(figure)
    assert not collections(figure)
    shown = [ax for ax in figure.axes if ax.patches]
    assert len(shown) == min(12, torch.Size(shape[1:]).numel())


def test_named_variables_get_a_picture_each(generator):
    x = {"where": torch.randn(20, 2, generator=generator), "how": torch.rand(20, 4, 4, generator=generator)}
    figure = plot_states(x, title="both")
    assert len(images(figure)) == 1
    assert collections(figure) == 1


def test_a_sheet_places_every_image_and_scales_to_its_limits():
    x = torch.stack([torch.full((2, 2), v) for v in (-1.0, 0.0, 1.0)])
    sheet = image_sheet(x, limits=(-1, 1), columns=2, gap=1, scale=2, background=0.25)
    assert sheet.shape == (9, 9, 3)
    assert (sheet[:4, :4] == 0).all()
    assert (sheet[:4, 5:] == 0.5).all()
    assert (sheet[5:, :4] == 1).all()
    assert (sheet[5:, 5:] == 0.25).all()
    assert (sheet[4] == 0.25).all()


def test_values_that_are_not_finite_do_not_stop_a_picture(tmp_path):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    x[3] = torch.nan
    x[4, 0] = torch.inf
    plot_states(x, tmp_path / "points.png")
    plot_states(x[:, :1], tmp_path / "histogram.png")
    plot_states(x.reshape(-1, 5, 4), tmp_path / "sheet.png")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg", "deep/er/a.png", "plain"])
def test_the_suffix_says_the_format(name, tmp_path):
    path = tmp_path / name
    plot_states(torch.zeros(4, 2), path)
    start = path.read_bytes()[:5]
    assert start == {".pdf": b"%PDF-", ".svg": b"<?xml"}.get(path.suffix, b"\x89PNG\r")
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plot_states(torch.zeros(4, 2), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("x", "options", "error", "said"),
    [
        ([1.0], {}, TypeError, "got list"),
        (torch.zeros(0, 2), {}, ValueError, "nothing to draw"),
        ({}, {}, ValueError, "empty"),
        (torch.zeros(3, 2), {"limits": (1.0, 1.0)}, ValueError, "low < high"),
        (torch.zeros(3, 2), {"path": "a.doc"}, ValueError, "no format for figures"),
    ],
)
def test_wrong_calls_say_what_came(x, options, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        plot_states(x, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(9, 2), (9, 1, 4, 4), (9, 3, 4, 4)])
def test_a_gif_goes_through_the_frames_and_holds_the_last(shape, tmp_path, generator):
    frames = [torch.randn(shape, generator=generator) for _ in range(7)]
    path = animate_states(frames, tmp_path / "a.gif", seconds=0.7, hold=2.0, title="a path")
    with Image.open(path) as gif:
        assert gif.n_frames == 7
        durations = []
        for k in range(7):
            gif.seek(k)
            durations.append(gif.info["duration"])
    assert durations == [100] * 6 + [2100]


def test_long_paths_are_thinned_to_frames_that_include_the_last(tmp_path):
    frames = [torch.full((4, 1, 3, 3), float(k)) for k in range(500)]
    path = animate_states(frames, tmp_path / "a.gif", limits=(0.0, 499.0))
    with Image.open(path) as gif:
        assert 30 <= gif.n_frames <= 60
        gif.seek(gif.n_frames - 1)
        assert min(gif.convert("L").tobytes()) >= 250  # the last frame, at the top of the scale


@pytest.mark.parametrize(
    ("frames", "path", "options", "said"),
    [
        ([], "a.gif", {}, "at least one frame"),
        ([torch.zeros(3, 2)], "a.mp4", {}, "GIF"),
        ([torch.zeros(3, 5)], "a.gif", {}, "only points"),
        ([torch.zeros(3, 2)], "a.gif", {"seconds": 0.0}, "positive"),
    ],
)
def test_wrong_animations_say_what_came(frames, path, options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        animate_states(frames, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_a_draw_plots_and_animates_its_path(tmp_path):
    p = Gaussian(torch.zeros(2), 1.0)
    draw = sample(p * p, 80, sampler=SMC(path="noise", record=True), seed=0)
    figure = draw.plot(tmp_path / "draw.png", title="product")
    assert type(figure).__name__ == "Figure"
    with Image.open(draw.animate(tmp_path / "path.gif", seconds=1.0)) as gif:
        assert gif.n_frames > 2


def test_states_of_chains_are_drawn_together():
    chains = Draw(torch.zeros(3, 5, 2), torch.zeros(3, 5), None, None, RunInfo("MCMC"), chains=True)
    (points,) = (c for ax in chains.plot(kind="states").axes for c in ax.collections)
    assert len(points.get_offsets()) == 15


def test_pyplot_is_never_loaded(tmp_path):
    program = (
        "import sys, torch; from boltzmix.compose import pictures; assert 'matplotlib' not in sys.modules\n"
        f"pictures.plot_states(torch.zeros(3, 2), {str(tmp_path / 'a.png')!r})\n"
        f"pictures.animate_states([torch.zeros(3, 2)] * 2, {str(tmp_path / 'a.gif')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
