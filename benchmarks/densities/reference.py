r"""Moments that only a long run can tell: ``python -m boltzmix.benchmarks.densities.reference NAME`` writes them.

Means of :math:`x_i, x_i^2, x_i^4` come from several hundred independent chains of NUTS, whose means give the standard
errors; R-hat of every coordinate must be below 1.01. ``phi4`` comes from its transfer matrix, and
``logistic_regression`` from importance sampling about its mode.

Then another method finds the same moments, and the largest difference in standard errors of both,

.. math:: z = \frac{|\hat\theta_1 - \hat\theta_2|}{\sqrt{\mathrm{se}_1^2 + \mathrm{se}_2^2}},

over the 2D moments is kept beside what chance allows in one of a hundred (Šidák). Where it is larger, nothing is
written.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import density, lattices, regressions
from boltzmix.benchmarks.densities.truths import FOLDER
from boltzmix.benchmarks.judgement import largest_z
from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC

LARGEST_RHAT = 1.01


@dataclass(frozen=True)
class Size:
    """Chains, transitions thrown away and kept."""

    chains: int
    warmup: int
    draws: int
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """Moments and how they were found; tensors are ``(D,)``, errors standard errors."""

    how: str
    mean: Tensor
    square: Tensor
    fourth: Tensor
    mean_error: Tensor
    square_error: Tensor
    numbers: dict[str, Any]

    def accuracy(self) -> float:
        """The largest squared standard error in units of the moments' own variances."""
        first = self.mean_error**2 / (self.square - self.mean**2)
        second = self.square_error**2 / (self.fourth - self.square**2)
        return float(torch.maximum(first, second).max())


def agreement(one: Found, other: Found) -> tuple[float, float]:
    """The largest |z| between two sets of moments, and what one in a hundred exceeds."""
    scores = []
    for name in ("mean", "square"):
        difference = getattr(one, name) - getattr(other, name)
        error = torch.hypot(getattr(one, f"{name}_error"), getattr(other, f"{name}_error"))
        scores.append(difference / error)
    z = torch.cat(scores)
    return float(z[~torch.isnan(z)].abs().max()), largest_z(int((~torch.isnan(z)).sum()))


def of_chains(x: Tensor, how: str, numbers: dict[str, Any]) -> Found:
    """Moments of independent chains ``(K, draws, D)``; standard errors from the K means.

    Raises:
        RuntimeError: R-hat of a coordinate is too large.
    """
    x = x.double()
    worst = float(rhat(x).max())
    if not worst < LARGEST_RHAT:
        raise RuntimeError(f"{how}: R-hat is {worst:.4f}, and must be below {LARGEST_RHAT}; take longer chains")
    means = [(x**power).mean(1) for power in (1, 2, 4)]
    first, second, fourth = (m.mean(0) for m in means)
    errors = [m.std(0) / math.sqrt(len(x)) for m in means]
    numbers = {**numbers, "rhat": worst, "smallest_ess": float(ess(x).min())}
    return Found(how, first, second, fourth, errors[0], errors[1], numbers)


# ------------------------------------------------------------------------ methods


def nuts(name: str, size: Size) -> Found:
    """This library's NUTS."""
    return _ours(name, size, NUTS(target_acceptance=0.9), "NUTS of this library, target acceptance 0.9")


def careful_nuts(name: str, size: Size) -> Found:
    """This library's NUTS with short steps, for funnels."""
    return _ours(name, size, NUTS(target_acceptance=0.99), "NUTS of this library, target acceptance 0.99")


def hmc(name: str, size: Size) -> Found:
    """This library's HMC with trajectories of adapted random length."""
    return _ours(name, size, HMC(num_leapfrog=None), "HMC of this library, trajectories adapted by ChEES")


def _ours(name: str, size: Size, kernel: NUTS | HMC, how: str) -> Found:
    target, clock = density(name), time.process_time()
    sampler = MCMC(kernel, warmup=size.warmup, draws=size.draws)
    starts = target.starts(size.chains, size.seed)
    draw = sample(target.term(), chains=size.chains, sampler=sampler, init=starts, seed=size.seed, progress=False)
    assert isinstance(draw.x, Tensor)
    numbers = {
        "chains": size.chains, "warmup": size.warmup, "draws": size.draws, "seed": size.seed,
        "divergences": draw.info.divergences, "cpu_seconds": round(time.process_time() - clock, 1),
    }  # fmt: skip
    return of_chains(draw.x, how, numbers)


def numpyro(name: str, size: Size) -> Found:
    """NumPyro's NUTS on the density in jax."""
    from boltzmix.benchmarks.methods import Budget
    from boltzmix.benchmarks.peers import NumPyroNUTS

    target, clock = density(name), time.process_time()
    run = NumPyroNUTS()(target, target.starts(size.chains, size.seed), Budget(size.warmup, size.draws), size.seed)
    if run.draws is None:
        raise RuntimeError(f"NumPyro failed: {run.error}")
    numbers = {
        "chains": size.chains, "warmup": size.warmup, "draws": size.draws, "seed": size.seed,
        "divergences": run.divergences, "cpu_seconds": round(time.process_time() - clock, 1),
    }  # fmt: skip
    return of_chains(run.draws, "NUTS of NumPyro on the density in jax, target acceptance 0.8", numbers)


def transfer(name: str, size: Size) -> Found:
    """The transfer matrix of the 8 × 8 lattice with 7 nodes for each site; its error is the step from 6 to 7."""
    assert name == "phi4"
    coarse, fine = (lattices.transfer_moments(8, 6.008, nodes, 16) for nodes in (6, 7))
    every = torch.ones(64, dtype=torch.float64)
    zero = 0 * every
    second_error = abs(fine[1] - coarse[1]) * every
    how = "transfer matrix, 7 Gauss nodes for each site, errors from 6"
    return Found(how, zero, fine[1] * every, fine[2] * every, zero, second_error, {"log_z": fine[0]})


def importance(name: str, size: Size) -> Found:
    """Importance sampling from a Gaussian about the mode."""
    assert name == "logistic_regression"
    return Found("importance sampling, antithetic, from the Gaussian at the mode with 1.1 times its covariance",
                 *regressions.importance_moments(1 << 20))  # fmt: skip


Way = tuple[Callable[[str, Size], Found], Size]
#: how the moments are found, and how they are checked
WAYS: dict[str, tuple[Way, Way]] = {
    "sparse_logistic_regression": ((careful_nuts, Size(192, 500, 1000)), (numpyro, Size(48, 500, 400, 1))),
    "stochastic_volatility": ((careful_nuts, Size(192, 500, 1000)), (hmc, Size(192, 500, 2000, 1))),
    "cox_process": ((nuts, Size(192, 300, 300)), (numpyro, Size(48, 300, 300, 1))),
    "phi4": ((transfer, Size(0, 0, 0)), (nuts, Size(64, 300, 1000, 1))),
    "logistic_regression": ((importance, Size(0, 0, 0)), (nuts, Size(96, 200, 300, 1))),
}


def write(name: str, found: Found, other: Found) -> Path:
    """Keep what was found with how it was checked.

    Raises:
        RuntimeError: the two disagree by more than chance.
    """
    z, allowed = agreement(found, other)
    if not z < allowed:
        raise RuntimeError(
            f"{name}: {found.how} and {other.how} differ by {z:.1f} standard errors (up to {allowed:.1f})"
        )
    check = {"how": other.how, **other.numbers, "largest_z": z, "allowed_z": allowed, "accuracy": other.accuracy()}
    kept = {
        "name": name,
        "how": found.how,
        **found.numbers,
        "accuracy": found.accuracy(),
        "check": check,
        **{key: _rounded(getattr(found, key)) for key in ("mean", "square", "fourth", "mean_error", "square_error")},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.10g}") for v in values.tolist()]


def main() -> None:
    """Find, check and write."""
    parser = argparse.ArgumentParser(prog="python -m boltzmix.benchmarks.densities.reference")
    parser.add_argument("name", choices=sorted(WAYS))
    name = parser.parse_args().name
    (find, size), (again, other_size) = WAYS[name]
    found = find(name, size)
    print(f"{name}: {found.how}, accuracy {found.accuracy():.1e}, {found.numbers}", flush=True)
    other = again(name, other_size)
    print(f"{name}: {other.how}, accuracy {other.accuracy():.1e}, {other.numbers}", flush=True)
    path = write(name, found, other)
    z, allowed = agreement(found, other)
    print(f"{name}: largest |z| {z:.2f}, allowed {allowed:.2f}; written to {path}")


if __name__ == "__main__":
    main()
