"""Style × content: the exact law of palettes, units and schedules that meet, and judges that notice a wrong palette."""

import itertools
import math

import pytest
import torch

import boltzmix as bm
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.scenes import style
from boltzmix.benchmarks.scenes.methods import METHODS, Pictures
from boltzmix.benchmarks.scenes.parser import parse
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.models.data import PALETTES, Scenes, marks
from boltzmix.models.data.scenes import COLORS

SCENES = Scenes.small()
NOTHING = Requests(torch.zeros(60, 0, 2), *(torch.zeros(60, 0, dtype=torch.long) for _ in range(2)))


@pytest.fixture(scope="module")
def models():
    return bm.models.load("scenes16"), bm.models.load("palettes")


def palettes_have_bayes_posterior():
    """Three palettes, equally likely; colours of objects independent and uniform over each."""
    rows = torch.tensor([[0, -1, -1], [0, 3, -1], [0, 3, 0], [1, 2, -1], [0, 1, -1]])
    warm, cool, mixed = (style.posterior(rows, name) for name in PALETTES)
    for m, row in ((1, 0), (2, 1), (3, 2)):
        assert float(warm[row]) == pytest.approx(1 / (1 + 0.5**m))
    assert float(cool[3]) == pytest.approx(0.8)
    assert warm[3] == 0
    assert (float(warm[4]), float(cool[4]), float(mixed[4])) == (0.0, 0.0, 1.0)
    assert torch.allclose(warm + cool + mixed, torch.ones(5, dtype=torch.float64))


def test_palettes_have_bayes_posterior():
    palettes_have_bayes_posterior()


def number_of_objects_given_a_palette():
    """In closed form: half of the allowed pairs are warm, so p(N | warm) ∝ 2^−N / (1 + 2^−N)."""
    exact = SCENES.layouts(100_000, torch.Generator().manual_seed(0))
    found = style.number_law(SCENES, "warm", exact)
    terms = [0.5**n / (1 + 0.5**n) for n in (1, 2, 3)]
    expected = torch.tensor([t / sum(terms) for t in terms], dtype=torch.float64)
    assert (found - expected).abs().max() < 0.01  # five standard errors
    assert float(style.number_law(SCENES, "mixed", exact)[2]) > 1 / 3


def test_number_of_objects_given_a_palette():
    number_of_objects_given_a_palette()


def test_the_law_of_palettes_is_that_of_marks():
    """p(palette | colours) of marks that do not overlap, by counting: 4.5 standard errors, 30 cells at most."""
    x, palette = marks(5_000, torch.Generator().manual_seed(0))
    rgb = torch.tensor(bm.models.data.scenes.PALETTE)
    pixels = x.flatten(2).mT
    seen = torch.stack([((pixels - value).abs() < 1e-6).all(2).any(1) for value in rgb], 1)  # colours of a picture
    for colors in itertools.product((False, True), repeat=2):  # only warm colours, by which of the two
        rows = (seen == torch.tensor([colors[0], False, False, colors[1]])).all(1)
        if colors == (False, False) or int(rows.sum()) < 100:
            continue
        share = (palette[rows, 0] == 0).double().mean()
        assert share > 1 / 1.5 - 4.5 * math.sqrt(0.25 / int(rows.sum()))
        assert (palette[rows, 0] != 1).all()


def test_two_schedules_and_two_scales_meet(models):
    """σ of the scenes is half as large for a model of [0, 1], and its score is halved with it."""
    content, other = models
    assert content.schedule is None
    assert type(other.schedule).__name__ == "FlowMatching"
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sigma in (0.1, 2.0):
            own = style.in_units_of_scenes(other).given(palette="cool").score(x, sigma)
            by_hand = other.given(palette="cool").score((x + 1) / 2, sigma / 2) / 2
            assert torch.allclose(own, by_hand, atol=1e-4)
            whole = style.styled(content, other, "cool").score(x, sigma)
            plain = other.score((x + 1) / 2, sigma / 2) / 2
            assert torch.allclose(whole, content.score(x, sigma) + own - plain, atol=1e-3)


def test_palettes_steer_scenes(models):
    """40 evaluations, 32 pictures at power 4; by chance 29 % of all scenes are of these palettes."""
    content, other = models
    nothing = NOTHING.rows(slice(0, 32))
    for palette in ("warm", "cool"):
        x = style.draw(METHODS["reverse"], content, other, palette, nothing, 40, 0, 4.0).x
        found = parse(x, SCENES)
        assert float(style.within(found, palette).double().mean()) > 0.85
        assert float(found.clean.double().mean()) > 0.8


def judges_notice_a_wrong_palette():
    report = Report("test", "test", section="test")
    layouts = SCENES.layouts(60, torch.Generator().manual_seed(0))
    cool = {COLORS.index(c) for c in PALETTES["cool"]}
    inside = torch.tensor([all(int(c) in cool | {-1} for c in row) for row in layouts.color])
    drawn = Pictures(SCENES.render(layouts), 10.0, 10.0, 0.1)
    rate = style.tell(report, "task", "exact", drawn, SCENES, "cool", NOTHING, None, 0)
    assert rate == pytest.approx(float(inside.double().mean()))
    assert 0.05 < rate < 0.6
    assert style.within(layouts, "mixed").all()
    empty = Pictures(torch.full((60, 3, 16, 16), -1.0), 10.0, 10.0, 0.1)
    assert style.tell(report, "task", "empty", empty, SCENES, "cool", NOTHING, None, 0) == 0.0


def test_judges_notice_a_wrong_palette():
    judges_notice_a_wrong_palette()
