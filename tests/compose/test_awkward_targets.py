"""Targets as they are in life, under every kernel of real variables: right answers or clear errors, no crash, no hang.

==============  ==================================================================================
``undefined``   NaN in a tenth of its space: the answer is the density of the rest
``edge``        a semicircle: zero density outside, an infinite gradient at the edge
``improper``    constant in one direction: no normalisable answer there, the other direction is right
``raises``      an exception for some rows: they count as NaN
``broken``      an exception always: it reaches the user
==============  ==================================================================================
"""

import inspect
import math
import warnings

import pytest
import torch

import boltzmix as bm
from boltzmix.compose import kernels
from boltzmix.compose.kernels import Kernel

ABSTRACT = {"Kernel"}
#: kernels without a Metropolis test, whose answers are off by their stated bias
UNADJUSTED = {"ULA", "UHMC", "Underdamped", "MicrocanonicalLangevin"}


def real_kernels():
    """Every public kernel that moves real variables, by name."""
    found = {}
    for name in kernels.__all__:
        kind = getattr(kernels, name)
        if not (inspect.isclass(kind) and issubclass(kind, Kernel)) or name in ABSTRACT or name == "BlockGibbs":
            continue
        if name == "EllipticalSlice":
            found[name] = kind(prior=bm.Gaussian(torch.zeros(2), 2.0))
        elif name == "ParallelTempering":
            found[name] = kind(bm.HMC(num_leapfrog=3), temperatures=3, hottest=3.0)
        elif name == "NUTS":
            found[name] = kind(max_depth=5)
        elif name == "HMC":
            found[name] = kind(num_leapfrog=3)
        elif kind().moves == "real":
            found[name] = kind()
    found["MicrocanonicalLangevin, adjusted"] = kernels.MicrocanonicalLangevin(adjusted=True)
    return found


KERNELS = real_kernels()
EXACT = sorted(name for name in KERNELS if name not in UNADJUSTED)


def chains(kernel, density, draws=160, start=None, seed=0):
    """A short run and what it warned of."""
    sampler = bm.MCMC(kernel, warmup=100, draws=draws)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw = bm.sample(density, chains=24, sampler=sampler, seed=seed, init=start)
    assert bool(torch.isfinite(draw.x).all())
    return draw, " ".join(str(w.message) for w in caught)


def z_scores(values, truth):
    """Of means over chains; chains are independent."""
    means = values.double().mean(1)
    return (means.mean(0) - truth) / (means.std(0) / math.sqrt(len(means))).clamp(min=0.02)


def gaussian(x):
    return 0.5 * x.square().sum(1)


def undefined(x):
    """A Gaussian without its tenth beyond the 90 % quantile of x₀."""
    return torch.where(x[:, 0] > 1.2816, torch.nan, gaussian(x))


def undefined_score(x):
    """The same with a gradient that is NaN, too: kernels that read scores alone know nothing of energies."""
    return gaussian(x) + x[:, 0] * torch.where(x[:, 0] > 1.2816, torch.nan, 0.0)


def raises_for_some(x):
    if bool((x[:, 0] > 1.2816).any()):
        raise RuntimeError("no density beyond 1.28")
    return gaussian(x)


#: mean of x₀ and of x₀² for a standard normal below its 90 % quantile c: −φ(c) / 0.9 and 1 − c φ(c) / 0.9
DENSITY = math.exp(-0.5 * 1.2816**2) / math.sqrt(2 * math.pi)
MEAN, SQUARE = -DENSITY / 0.9, 1 - 1.2816 * DENSITY / 0.9


def check_truncated(draw):
    x = draw.x
    assert float(x[..., 0].max()) <= 1.2816
    assert draw.info.divergences > 0
    found = torch.stack([z_scores(x[..., 0], MEAN), z_scores(x[..., 0] ** 2, SQUARE), z_scores(x[..., 1], 0.0)])
    assert float(found.abs().max()) < 5


@pytest.mark.parametrize("name", EXACT)
def test_nan_in_a_tenth_of_space(name):
    draw, _ = chains(KERNELS[name], bm.term(undefined, kind="energy", event_shape=(2,)))
    check_truncated(draw)


@pytest.mark.parametrize("name", sorted(UNADJUSTED))
def test_nan_in_a_tenth_of_space_without_a_test(name):
    draw, said = chains(KERNELS[name], bm.term(undefined_score, kind="energy", event_shape=(2,)))
    assert float(draw.x[..., 0].max()) <= 1.2816
    assert draw.info.divergences > 0
    assert "finite" in said or "diverge" in said


@pytest.mark.parametrize("name", ["HMC", "NUTS", "MALA", "RandomWalk", "ParallelTempering"])
def test_an_exception_for_some_rows_is_nan_there(name):
    draw, _ = chains(KERNELS[name], bm.term(raises_for_some, kind="energy", event_shape=(2,)))
    check_truncated(draw)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_an_exception_for_all_rows_reaches_the_user(name):
    def broken(x):
        raise ZeroDivisionError("my own mistake")

    with pytest.raises((ZeroDivisionError, ValueError, RuntimeError), match="my own mistake"):
        chains(KERNELS[name], bm.term(broken, kind="energy", event_shape=(2,)))


def edge(x):
    """√(1 − x₀²) inside the interval (−1, 1), nothing outside; a standard normal beside it."""
    inside = 1 - x[:, 0] ** 2
    return torch.where(inside > 0, -0.5 * inside.clamp(min=1e-30).log(), torch.inf) + 0.5 * x[:, 1] ** 2


@pytest.mark.parametrize("name", EXACT)
def test_an_infinite_gradient_at_the_edge(name):
    start = 0.5 * torch.rand(24, 2, generator=torch.Generator().manual_seed(3))
    draw, _ = chains(KERNELS[name], bm.term(edge, kind="energy", event_shape=(2,)), start=start)
    assert float(draw.x[..., 0].abs().max()) < 1
    # Wigner's semicircle: variance ¼
    assert float(z_scores(draw.x[..., 0] ** 2, 0.25).abs()) < 5
    assert float(z_scores(draw.x[..., 1], 0.0).abs()) < 5


def improper(x):
    return 0.5 * x[:, 1] ** 2 + 0.0 * x[:, 0]


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_constant_direction(name):
    draw, _ = chains(KERNELS[name], bm.term(improper, kind="energy", event_shape=(2,)))
    if name not in UNADJUSTED:
        assert float(z_scores(draw.x[..., 1], 0.0).abs()) < 5
        assert float(z_scores(draw.x[..., 1] ** 2, 1.0).abs()) < 6
