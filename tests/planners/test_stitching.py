"""Long horizons from overlapping segments, against chains whose long densities are known."""

import pytest
import torch

from boltzmix.compose import Gaussian
from boltzmix.planners.known import Held, hold
from boltzmix.planners.stitching import stitched
from tests.planners.twins import GaussianTwin, chain


def precision_of(term, size: int) -> torch.Tensor:
    """Minus the slope of a linear score, (size, size)."""
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *term.event_shape)
    at_zero = term.score(torch.zeros(1, *term.event_shape, dtype=torch.float64))
    return (at_zero - term.score(basis)).reshape(size, size)


def segment(horizon: int, columns: int = 1) -> Gaussian:
    return Gaussian(torch.zeros(horizon, columns, dtype=torch.float64), chain(horizon, columns))


def test_overlaps_count_once() -> None:
    """A chain of variance 1.05: segments of two tokens over twenty-one; without the quotient 0.38 is left of it."""
    long = stitched(segment(2), 21, overlap=1)
    spread = precision_of(long, 21).inverse()
    torch.testing.assert_close(spread, chain(21))
    assert float(spread[10, 10]) == pytest.approx(1.05)
    twice = stitched(segment(2), 21, overlap=1, quotient=False)
    # a tridiagonal precision of diagonal 2 k and neighbours −a k, k = 1 / v (1 − a²): v √(1 − a²) / 2 in the middle
    assert float(precision_of(twice, 21).inverse()[10, 10]) == pytest.approx(0.375, abs=0.01)


@pytest.mark.parametrize(("horizon", "overlap", "total"), [(4, 1, 10), (6, 3, 15), (5, 4, 8)])
def test_the_quotient_is_exact_for_a_chain(horizon: int, overlap: int, total: int) -> None:
    long = stitched(segment(horizon, 2), total, overlap=overlap)
    torch.testing.assert_close(precision_of(long, 2 * total).inverse(), chain(total, 2), rtol=1e-7, atol=1e-7)
    x = torch.randn(3, total, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = Gaussian(torch.zeros(total, 2, dtype=torch.float64), chain(total, 2))
    torch.testing.assert_close(long.energy(x), exact.energy(x))


def test_known_coordinates_reach_every_segment_that_holds_them() -> None:
    """p(free | known) of the long chain, at the data end, from a prior that takes clean coordinates."""
    prior = GaussianTwin(4, 1, kernel=chain)
    long = stitched(prior, 10, overlap=2)
    mask = torch.zeros(10, 1, dtype=torch.bool)
    mask[0] = mask[3] = mask[9] = True  # token 3 lies in an overlap, beside a free one
    value = torch.zeros(10, 1)
    value[0], value[3], value[9] = 1.0, -0.5, 2.0
    held = Held(mask, value)
    given = hold(long, held)
    exact = hold(Gaussian(torch.zeros(10, 1), chain(10).float()), held)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(given.score(x), exact.score(x), rtol=1e-4, atol=1e-4)

    total = torch.zeros(5, 10)
    for start, tokens, sign in [(s, 4, 1.0) for s in (0, 2, 4, 6)] + [(s, 2, -1.0) for s in (2, 4, 6)]:
        part, own = mask[start : start + tokens], Gaussian(torch.zeros(tokens, 1), chain(tokens).float())
        piece = hold(own, Held(part, value[start : start + tokens]))
        here = start + (~part).flatten().nonzero()[:, 0]
        total[:, here] += sign * piece.score(held.join(x)[:, here, 0], 1.0)
    torch.testing.assert_close(given.score(x, 1.0), total[:, held.free], rtol=1e-4, atol=1e-4)


def test_the_overlap_is_the_network_at_another_length() -> None:
    long = stitched(GaussianTwin(6, 2, kernel=chain), 10, overlap=2)
    assert long.trajectory["horizon"] == 10
    assert long.small.event_shape == (2, 2)
    assert long.segments == (0, 4)


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use one of \[1, 2, 3\]|use one of"):
        stitched(segment(4), 11, overlap=1)
    with pytest.raises(ValueError, match="int >= 4"):
        stitched(segment(4), 3)
    assert stitched(segment(4), 4).event_shape == (4, 1)
