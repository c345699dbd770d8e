"""Known coordinates: three ways to hold them, and what each claims."""

import pytest
import torch

from boltzmix.compose import SMC, Gaussian, Reverse, affine, sample
from boltzmix.compose.errors import NonFinite
from boltzmix.planners.known import Conditions, Held, Known, hold
from tests.planners.twins import GaussianTwin, smooth


def pinned(horizon: int = 6, value: float = 1.5) -> Held:
    mask = torch.zeros(horizon, 2, dtype=torch.bool)
    mask[0] = mask[-1] = True
    values = torch.zeros(horizon, 2)
    values[0], values[-1] = -1.0, value
    return Held(mask, values)


def prior(horizon: int = 6, dtype: torch.dtype = torch.float64) -> Gaussian:
    return Gaussian(torch.zeros(horizon, 2, dtype=dtype), smooth(horizon, length=3.0).to(dtype))


def conditional(horizon: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the free coordinates, from the precision matrix of all (another formula)."""
    held = pinned(horizon)
    precision = smooth(horizon, length=3.0).inverse()
    free, known = held.free, held.mask.flatten().nonzero()[:, 0]
    spread = precision[free][:, free].inverse()
    return -spread @ precision[free][:, known] @ held.value[0, known].double(), spread


def test_a_gaussian_is_conditioned_in_closed_form() -> None:
    given = hold(prior(), pinned())
    mean, spread = conditional()
    assert isinstance(given, Gaussian)
    assert given.path == "noised"
    torch.testing.assert_close(given.mean, mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(given.covariance, spread, rtol=1e-6, atol=1e-8)


def test_a_slice_ends_in_the_conditional_and_says_that_it_is_no_convolution() -> None:
    given = Known(prior(), pinned().mask, pinned().value.reshape(6, 2))
    assert given.path == "annealed"
    assert "no convolution" in given.path_reason
    mean, spread = conditional()
    exact = Gaussian(mean, spread)
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(given.score(x), exact.score(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(given.energy(x).diff(), exact.energy(x).diff(), rtol=1e-6, atol=1e-6)
    # with noise the two differ: the slice believes that known coordinates are noisy
    assert not torch.allclose(given.score(x, 1.0), exact.score(x, 1.0), rtol=0.05)


def test_a_trained_prior_is_told_what_is_known_and_stays_noised() -> None:
    """Given clean coordinates the score is that of the noised conditional, at every level."""
    twin = GaussianTwin(6, kernel=lambda h, d: smooth(h, d, length=3.0))
    assert isinstance(twin, Conditions)
    given = hold(twin, pinned())
    assert given.path == "noised"
    mean, spread = conditional()
    exact = Gaussian(mean, spread)
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 1.0, 5.0):
        torch.testing.assert_close(given.score(x, sigma), exact.score(x, sigma), rtol=2e-3, atol=2e-3)


def test_other_units_are_conditioned_inside() -> None:
    twin = GaussianTwin(6)
    given = hold(affine(twin, loc=0.5, scale=2.0), pinned())
    inner = hold(twin, Held(pinned().mask, (pinned().value.reshape(6, 2) - 0.5) / 2.0))
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert given.path == "noised"
    torch.testing.assert_close(given.score(x, 0.8), inner.score((x - 0.5) / 2.0, 0.4) / 2.0)


def test_products_are_held_factor_by_factor() -> None:
    held = pinned()
    formula = hold(prior() * prior() ** 0.5, held)
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(formula.score(x, 0.3), 1.5 * hold(prior(), held).score(x, 0.3))


def test_every_sampler_moves_free_coordinates_alone() -> None:
    """Draws of reverse diffusion and of SMC have the conditional's moments; 800 draws, |z| < 4.5 for 8 means."""
    mean, spread = conditional()
    twin = GaussianTwin(6, kernel=lambda h, d: smooth(h, d, length=3.0))
    for term, sampler in ((hold(twin, pinned()), Reverse(steps=40)), (Known(prior(), pinned()), SMC())):
        draw = sample(term, 800, sampler=sampler, seed=0)
        z = (draw.x.double().mean(0) - mean) / (spread.diag() / 800).sqrt()
        assert float(z.abs().max()) < 4.5


def test_values_for_each_row_stay_with_their_rows() -> None:
    mask = pinned().mask
    values = torch.stack([pinned(value=v).value.reshape(6, 2) for v in (0.0, 3.0)])
    twin = GaussianTwin(6)
    both = hold(twin, Held(mask, values))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    for k in range(2):
        alone = hold(twin, Held(mask, values[k]))
        torch.testing.assert_close(both.score(x, 0.5)[k : k + 1], alone.score(x[k : k + 1], 0.5))
    with pytest.raises(ValueError, match="given for 2 draws, and 3"):
        both.score(torch.zeros(3, 8), 0.5)


def test_what_makes_no_sense_is_refused() -> None:
    mask, value = pinned().mask, pinned().value.reshape(6, 2)
    with pytest.raises(TypeError, match="boolean"):
        Held(mask.float(), value)
    with pytest.raises(ValueError, match="nothing left"):
        Held(torch.ones(6, 2, dtype=torch.bool), value)
    with pytest.raises(ValueError, match="mask's shape"):
        Held(mask, value[:3])
    with pytest.raises(NonFinite, match="1 known"):
        Held(mask, value.index_put((torch.tensor([0]), torch.tensor([1])), torch.tensor(float("nan"))))
    with pytest.raises(ValueError, match="is over"):
        Known(prior(), Held(mask[:4], value[:4]))
