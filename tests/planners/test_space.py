"""Trajectory spaces: units, names, and priors that were trained in other units."""

import numpy as np
import pytest
import torch
from torch import nn

from boltzmix.compose import Gaussian, Term, Variable
from boltzmix.planners import TrajectorySpace

STATE, ACTION = ("x", "y", "vx", "vy"), ("ax", "ay")
SPACE = TrajectorySpace(
    5, STATE, ACTION, dt=0.1, stride=2, loc=(1, -1, 0, 0, 0, 0), scale=(2, 2, 0.5, 3, 1, 4), bounds=((-2, 4), (-4, 2))
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normalising_and_back_changes_nothing():
    tau = rows(7, 5, 6)
    torch.testing.assert_close(SPACE.physical(SPACE.normalise(tau)), tau, rtol=1e-14, atol=1e-14)
    assert torch.equal(SPACE.normalise(tau)[..., 3], tau[..., 3] / 3)


def test_arrays_and_tensors_agree_and_keep_their_dtype():
    tau = rows(2, 5, 6).float()
    array = SPACE.normalise(tau.numpy())
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, SPACE.normalise(tau).numpy(), rtol=1e-6)
    assert SPACE.physical(tau).dtype == torch.float32


def test_columns_are_found_by_name_wherever_they_are():
    space = TrajectorySpace(3, ("theta", "y", "x"), ("u",), scale=(1, 2, 2, 1))
    tau = rows(2, 3, 4)
    assert torch.equal(space.positions(tau), tau[..., [2, 1]])
    assert torch.equal(space.states(tau), tau[..., :3])
    assert torch.equal(space.actions(tau), tau[..., 3:])
    assert space.columns("u") == [3]
    assert torch.equal(SPACE.positions(tau.expand(2, 3, 4)[..., [0, 1, 2, 3, 0, 1]]), tau[..., :2])


def test_a_space_survives_json():
    import json

    assert TrajectorySpace.from_dict(json.loads(json.dumps(SPACE.to_dict()))) == SPACE
    plain = TrajectorySpace(2, ("x", "y"))
    assert TrajectorySpace.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain


def test_fitted_columns_have_mean_zero_and_variance_one_and_positions_share_their_scale():
    data = rows(200, 8, 6) * torch.tensor([3.0, 1.0, 0.1, 2.0, 5.0, 0.0]) + torch.tensor([4.0, 0, 0, -7.0, 0, 0.3])
    space = TrajectorySpace.fit(data, state=STATE, action=ACTION, dt=0.2, stride=3)
    assert (space.horizon, space.dt, space.stride) == (8, 0.2, 3)
    x = space.normalise(data).flatten(0, 1)
    torch.testing.assert_close(x.mean(0), torch.zeros(6).double(), atol=1e-9, rtol=0)
    variance = x.var(0, correction=0)
    assert torch.allclose(variance[2:5], torch.ones(3).double())
    assert abs(float(variance[:2].mean()) - 1) < 1e-9
    assert abs(float(variance[0] / variance[1]) - float(data[..., 0].var() / data[..., 1].var())) < 1e-2
    assert space.scale[5] == 1.0  # a column that never changes


def test_times_are_those_of_the_tokens():
    torch.testing.assert_close(SPACE.times(), torch.tensor([0, 0.1, 0.2, 0.3, 0.4]))
    assert SPACE.duration == pytest.approx(0.4)
    assert SPACE.resized(9).shape == (9, 6)


# ----------------------------------------------------------------- other spaces


def gaussian_over(space, seed):
    """The same Gaussian of τ, (μ, C), as a term over a space's coordinates."""
    d = space.shape[0] * space.shape[1]
    root = rows(d, d, seed=seed) / d**0.5
    mean, cov = rows(d, seed=seed + 1), root @ root.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    loc = torch.tensor(space.loc * space.horizon, dtype=torch.float64)
    scale = torch.tensor(space.scale * space.horizon, dtype=torch.float64)
    return Gaussian(((mean - loc) / scale).reshape(space.shape), cov / torch.outer(scale, scale))


OTHER = TrajectorySpace(
    5, STATE, ACTION, dt=0.1, loc=(0.3, 2, 1, 0, -1, 0.5), scale=(0.7, 0.7, 1, 1, 2, 0.1)
)  # another normaliser


def test_a_prior_of_other_units_is_exactly_that_density_here():
    adopted, direct = SPACE.adopt(gaussian_over(OTHER, 3), OTHER), gaussian_over(SPACE, 3)
    x = rows(6, 5, 6, seed=9)
    torch.testing.assert_close(adopted.energy(x), direct.energy(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adopted.score(x), direct.score(x), rtol=1e-9, atol=1e-9)
    assert adopted.normalized
    assert adopted.path == "annealed"


def test_one_ratio_of_scales_keeps_the_noise_levels_exact():
    other = TrajectorySpace(
        5, STATE, ACTION, dt=0.1, loc=(0.3, 2, 1, 0, -1, 0.5), scale=tuple(0.25 * s for s in SPACE.scale)
    )
    adopted, direct = SPACE.adopt(gaussian_over(other, 3), other), gaussian_over(SPACE, 3)
    x = rows(6, 5, 6, seed=9)
    assert adopted.path == "noised"
    for sigma in (0.1, 2.0):
        torch.testing.assert_close(adopted.energy(x, sigma), direct.energy(x, sigma), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(adopted.denoise(x, sigma), direct.denoise(x, sigma), rtol=1e-9, atol=1e-9)


def test_a_prior_of_these_units_stays_what_it_is():
    prior = gaussian_over(SPACE, 3)
    assert SPACE.adopt(prior, SPACE) is prior


class Conditional(Gaussian):
    """A prior that knows its space and, told which coordinates are known, reads them clean."""

    trajectory = OTHER.to_dict()

    def conditioned_on(self, mask):
        return Gaussian(self.mean.reshape(self.event_shape), 2.0) if bool(mask.any()) else self


def test_an_adopted_prior_keeps_its_conditioning_and_names_the_new_space():
    prior = Conditional(torch.zeros(5, 6, dtype=torch.float64), 1.0)
    adopted = SPACE.adopt(prior, OTHER)
    assert TrajectorySpace.of(prior) == OTHER
    assert TrajectorySpace.of(adopted) == SPACE
    assert TrajectorySpace.of(adopted * Gaussian(torch.zeros(5, 6, dtype=torch.float64), 1.0)) == SPACE
    known = adopted.conditioned_on(torch.ones(5, 6, dtype=torch.bool))
    x = rows(2, 5, 6)
    direct = SPACE.adopt(Gaussian(torch.zeros(5, 6, dtype=torch.float64), 2.0), OTHER)
    torch.testing.assert_close(known.score(x), direct.score(x))
    assert not hasattr(SPACE.adopt(gaussian_over(OTHER, 3), OTHER), "conditioned_on")


def test_two_spaces_in_one_formula_are_refused():
    class Prior(Term):
        def __init__(self, space):
            super().__init__()
            self.variables, self.trajectory = Variable(space.shape), space.to_dict()

        def _energy(self, x, sigma):
            return x.flatten(1).sum(1)

    assert TrajectorySpace.of(Prior(SPACE) * Prior(SPACE)) == SPACE
    with pytest.raises(ValueError, match="2 trajectory spaces"):
        TrajectorySpace.of(Prior(SPACE) * Prior(OTHER))


# ----------------------------------------------------------------- errors

GOOD = {"horizon": 4, "state": ("x", "y")}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"horizon": 0}, ValueError, "positive int"),
        ({"horizon": 2.0}, TypeError, "int"),
        ({"stride": True}, TypeError, "int"),
        ({"state": "xy"}, TypeError, "tuple"),
        ({"state": ()}, ValueError, "at least one"),
        ({"state": ("x", "y", "x")}, ValueError, "differ"),
        ({"action": ("x",)}, ValueError, "differ"),
        ({"position": ("x", "z")}, ValueError, "position"),
        ({"position": ()}, ValueError, "position"),
        ({"dt": 0.0}, ValueError, "dt"),
        ({"dt": float("nan")}, ValueError, "finite"),
        ({"loc": (0.0,)}, ValueError, "one number for each"),
        ({"loc": (0.0, float("inf"))}, ValueError, "finite"),
        ({"scale": (1.0, 0.0)}, ValueError, "positive"),
        ({"scale": (1.0, 2.0)}, ValueError, "share one scale"),
        ({"scale": ("1", "1")}, TypeError, "number"),
        ({"bounds": ((0, 1),)}, ValueError, "bounds"),
        ({"bounds": ((0, 1), (1, 1))}, ValueError, "bounds"),
    ],
)
def test_wrong_spaces_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        TrajectorySpace(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: SPACE.normalise(torch.zeros(2, 5, 4)), ValueError, "6 columns"),
        (lambda: SPACE.normalise(torch.zeros(2, 5, 6, dtype=torch.long)), TypeError, "floating"),
        (lambda: SPACE.normalise([[0.0] * 6]), TypeError, "tensor or an array"),
        (lambda: SPACE.columns(("x", "z")), ValueError, "no column"),
        (lambda: SPACE.token(5), ValueError, "tokens"),
        (lambda: SPACE.token(1.0), TypeError, "int"),
        (lambda: TrajectorySpace(2, ("x", "y")).actions(torch.zeros(2, 2)), ValueError, "no action"),
        (lambda: SPACE.values((1.0, 2.0, 3.0), "goal"), ValueError, "goal"),
        (lambda: SPACE.values((1.0, float("nan")), "goal"), ValueError, "finite"),
        (lambda: SPACE.values({"z": 1.0}, "goal"), ValueError, "no column"),
        (lambda: SPACE.values({}, "goal"), ValueError, "no column"),
        (lambda: SPACE.values(torch.zeros(1, 2), "goal"), ValueError, "vector"),
        (lambda: TrajectorySpace.from_dict({**SPACE.to_dict(), "colour": 1}), ValueError, "unknown"),
        (lambda: TrajectorySpace.from_dict({"horizon": 3}), ValueError, "missing"),
        (lambda: TrajectorySpace.from_dict([1]), TypeError, "mapping"),
        (lambda: TrajectorySpace.fit(torch.zeros(3, 2), state=("x", "y")), ValueError, r"\(N, H, 2\)"),
        (lambda: TrajectorySpace.fit(torch.full((3, 2, 2), torch.nan), state=("x", "y")), ValueError, "not finite"),
        (lambda: TrajectorySpace.of(Gaussian(torch.zeros(5, 6), 1.0)), TypeError, "pass the space"),
        (lambda: TrajectorySpace.of(nn.Linear(1, 1)), TypeError, "term"),
        (lambda: SPACE.adopt(gaussian_over(OTHER, 3), OTHER.resized(6)), ValueError, "horizon"),
        (lambda: SPACE.adopt(Gaussian(torch.zeros(4, 6), 1.0), OTHER), ValueError, "over"),
        (lambda: SPACE.adopt(nn.Linear(1, 1), OTHER), TypeError, "term"),
    ],
)
def test_wrong_calls_are_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
