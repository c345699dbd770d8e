"""Pictures of chains show what their titles say: drawn lines and bars are compared with the numbers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from boltzmix.compose.chain_pictures import plot_chains
from boltzmix.compose.diagnostics import autocorrelation
from boltzmix.compose.draw import Draw, RunInfo


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def axis(figure, title):
    return next(ax for ax in figure.axes if ax.get_title() == title)


X = {"mu": normal(4, 300), "theta": normal(4, 300, 2, seed=1)}
STATS = {"energy": normal(4, 300, seed=2), "diverging": normal(4, 300, seed=3) > 2.5}


def test_chains_are_drawn_as_traces_and_ranks_by_default(tmp_path):
    draw = Draw(X, torch.zeros(4, 300), None, None, RunInfo("MCMC"), chains=True, stats=STATS)
    figure = draw.plot(tmp_path / "chains.png", title="all of them")
    names = ("mu", "theta[0]", "theta[1]")
    assert titles(figure) == [t for name in names for t in (f"{name}: trace", "density", "ranks")]
    assert figure.get_suptitle() == "all of them"
    with Image.open(tmp_path / "chains.png") as picture:
        assert picture.width > 800
    last = figure.axes[-3:]
    assert [ax.get_xlabel() for ax in last] == ["draw", "", "rank of the draw"]


def test_a_trace_is_the_chain_and_marks_divergences():
    figure = plot_chains(X, STATS, kind="trace", names="mu")
    lines = axis(figure, "mu: trace").lines
    for k in range(4):
        np.testing.assert_array_equal(lines[k].get_ydata(), X["mu"][k].numpy())
    marked = STATS["diverging"].any(0).nonzero()[:, 0]
    assert len(marked) > 3
    assert lines[4].get_xdata().tolist() == marked.tolist()
    assert lines[4].get_label() == "divergent"
    assert len({line.get_color() for line in lines[:4]}) == 4


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_densities_integrate_to_one_and_are_those_of_the_draws(scale):
    x = scale * (5 + normal(2, 4000))
    lines = axis(plot_chains(x, {}, kind="trace"), "density").lines
    assert len(lines) == 2
    for line in lines:
        density, at = torch.from_numpy(line.get_xdata()), torch.from_numpy(line.get_ydata())
        step = float(at[1] - at[0])
        assert float(density.sum()) * step == pytest.approx(1.0, abs=1e-3)
        true = (-0.5 * (at / scale - 5) ** 2).exp() / (scale * (2 * torch.pi) ** 0.5)
        assert float((density - true).abs().sum()) * step < 0.1


def test_ranks_of_chains_that_agree_are_even_and_of_others_are_not():
    x = normal(4, 2000, seed=4)
    figure = plot_chains(x, {}, kind="rank")
    (drawn,) = (ax for ax in figure.axes if ax.get_title() == "x: ranks")
    stairs = [patch for patch in drawn.patches if type(patch).__name__ == "StepPatch"]
    values = np.stack([patch.get_data().values for patch in stairs])
    assert values.shape == (4, 20)
    np.testing.assert_allclose(values.mean(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(values.mean(0), 1.0, rtol=1e-12)
    assert np.abs(values - 1).max() < 0.45  # 100 a bar: 4.5 standard deviations
    shifted = x + torch.tensor([0.0, 0.0, 0.0, 9.0])[:, None]
    (drawn,) = (ax for ax in plot_chains(shifted, {}, kind="rank").axes if "ranks" in ax.get_title())
    values = np.stack([patch.get_data().values for patch in drawn.patches if type(patch).__name__ == "StepPatch"])
    np.testing.assert_allclose(values[3, :15], 0.0)
    np.testing.assert_allclose(values[3, 15:], 4.0)


def test_discrete_parameters_have_frequencies_and_even_ranks():
    k = torch.randint(0, 4, (3, 2000), generator=torch.Generator().manual_seed(8))
    figure = plot_chains({"k": k}, {})
    shares = [patch.get_data().values for patch in axis(figure, "frequency").patches]
    for row, share in zip(k, shares, strict=True):
        np.testing.assert_allclose(share, torch.bincount(row, minlength=4).double().numpy() / 2000)
    ranks = [p.get_data().values for p in axis(figure, "ranks").patches if type(p).__name__ == "StepPatch"]
    assert np.abs(np.stack(ranks) - 1).max() < 0.45


def test_ranks_of_many_chains_become_a_map():
    x = normal(30, 100, seed=5)
    x[29] += 9
    figure = plot_chains(x, {}, kind="rank")
    (mesh,) = axis(figure, "x: ranks").collections
    values = mesh.get_array().reshape(30, 20)
    assert float(values[29, 19]) == pytest.approx(20.0)
    assert float(values[29, :19].max()) == 0


def test_autocorrelations_are_drawn_for_each_chain():
    x = normal(3, 200, seed=6).cumsum(1)
    figure = plot_chains(x, {}, kind=("trace", "autocorrelation"))
    lines = [line for line in axis(figure, "autocorrelation").lines if len(line.get_xdata()) == 100]
    assert len(lines) == 3
    for k, line in enumerate(lines):
        np.testing.assert_allclose(line.get_ydata(), autocorrelation(x)[k, :100].numpy())


def test_pairs_mark_divergences_where_they_are():
    figure = plot_chains(X, STATS, kind="pair")
    shown = [ax for ax in figure.axes if ax.collections]
    assert len(shown) == 3
    below = next(ax for ax in shown if (ax.get_xlabel(), ax.get_ylabel()) == ("mu", "theta[1]"))
    points, crosses = below.collections
    assert len(points.get_offsets()) == 1200
    bad = STATS["diverging"].flatten()
    expected = torch.stack([X["mu"].flatten()[bad], X["theta"][..., 1].flatten()[bad]], 1)
    np.testing.assert_array_equal(crosses.get_offsets().data, expected.numpy())
    legend = next(ax.get_legend() for ax in figure.axes if ax.get_legend() is not None)
    assert [t.get_text() for t in legend.get_texts()] == ["draws", f"divergent ({int(bad.sum())})"]
    with pytest.raises(ValueError, match=r"a pair plot needs two parameters, got \['mu'\]"):
        plot_chains(X, STATS, kind="pair", names="mu")


def test_energies_are_drawn_beside_their_changes():
    figure = plot_chains(X, STATS, kind="energy")
    assert titles(figure)[0].startswith("E-BFMI of the chains: ")
    spreads = []
    for line in figure.axes[0].lines:
        at, density = line.get_xdata(), line.get_ydata()
        spreads.append(np.sqrt((at**2 * density).sum() / density.sum()))
    assert spreads[1] / spreads[0] == pytest.approx(2**0.5, rel=0.1)  # independent energies
    with pytest.raises(ValueError, match="no energies to draw"):
        plot_chains(X, {}, kind="energy")


def test_the_worst_parameters_are_drawn_when_there_are_many():
    x = normal(4, 60, 40)
    x[0, :, 33] += 3
    x[1, :, 7] += 3
    figure = plot_chains(x, {}, kind="trace", most=2)
    assert [t for t in titles(figure) if "trace" in t] == ["x[7]: trace", "x[33]: trace"]
    assert "2 of 40 parameters" in figure.get_supxlabel()
    assert sum("trace" in t for t in titles(plot_chains(x, {}))) == 6
    assert sum("trace" in t for t in titles(plot_chains(x, {}, names=["x[3]", "x[4]"]))) == 2


def test_many_chains_and_long_ones_are_thinned_for_the_eye():
    x = normal(40, 5000, seed=7)
    figure = plot_chains(x, {}, kind="trace")
    trace = axis(figure, "x: trace")
    assert len(trace.lines) == 12
    assert len(trace.lines[0].get_xdata()) <= 2000
    np.testing.assert_array_equal(trace.lines[11].get_ydata(), x[39, ::3].numpy())
    assert trace.get_xlabel() == "draw (12 of 40 chains)"


@pytest.mark.parametrize("kind", ["trace", "rank", "autocorrelation", "pair", "energy"])
def test_odd_values_do_not_stop_a_picture(kind, tmp_path):
    x = normal(3, 50, 5)
    x[0, 3, 0], x[:, :, 1], x[1, :, 2] = torch.nan, 2.0, torch.inf
    x[..., 3] = x[..., 3].round()
    energy = x[..., 4].clone()
    energy[0, 0] = torch.nan
    names = {"a": x, "n": torch.randint(0, 2, (3, 50)), "b": torch.ones(3, 50, dtype=torch.bool)}
    plot_chains(names, {"energy": energy}, tmp_path / "odd.pdf", kind=kind, most=20 if kind != "pair" else 4)
    assert (tmp_path / "odd.pdf").read_bytes()[:5] == b"%PDF-"
    plot_chains(normal(1, 3, 2), {"energy": normal(1, 3)}, tmp_path / "short.png", kind=kind)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "traces"}, "pictures of chains are trace, rank, .*got kind='traces'"),
        ({"kind": ()}, r"got kind=\(\)"),
        ({"kind": ("trace", "pair")}, "pair and energy are figures of their own"),
        ({"names": "nu"}, "no parameter 'nu' among mu"),
    ],
)
def test_wrong_calls_say_what_came(options, said):
    with pytest.raises(ValueError, match=said):
        plot_chains(X, STATS, **options)


def test_particles_have_no_chains_to_draw():
    cloud = Draw(normal(50, 2), torch.zeros(50), 0.0, 0.0, RunInfo("SMC"))
    with pytest.raises(ValueError, match="kind='trace' is a picture of chains"):
        cloud.plot(kind="trace")
    assert len(cloud.plot(kind="states").axes) == 1


def test_pyplot_is_never_loaded(tmp_path):
    program = (
        "import sys, torch; from boltzmix.compose import chain_pictures; assert 'matplotlib' not in sys.modules\n"
        f"chain_pictures.plot_chains(torch.randn(12, 40, 3), {{}}, {str(tmp_path / 'a.png')!r})\n"
        f"chain_pictures.plot_chains(torch.randn(2, 40, 3), {{}}, {str(tmp_path / 'b.png')!r}, kind='pair')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_note_fits_a_narrow_figure():
    x = torch.randn(4, 50, 30, generator=torch.Generator().manual_seed(0))
    figure = plot_chains(x, {}, kind="autocorrelation")
    box = figure._supxlabel.get_window_extent(figure.canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
