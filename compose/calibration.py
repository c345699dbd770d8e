r"""Calibration: the free constant of a learned energy, fixed level by level.

Denoising score matching learns :math:`\nabla_x E(x; \sigma)`; the constant of E is free at each level and
condition. :func:`calibrate` runs SMC down the levels, where the start is a Gaussian of known integral, and
subtracts the log Z found on the way, so that :math:`E + c(\sigma)` is −log of a normalised density.

Calibration fixes the weights between *terms* (mixtures, log Z). It cannot repair relative masses of modes
within a term, which the learned energy states as it does.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.flat import device_of
from boltzmix.compose.samplers.anneal import begin, descend
from boltzmix.compose.samplers.base import Request, frozen
from boltzmix.compose.samplers.path import NoisePath, gaussian_draws
from boltzmix.compose.samplers.smc import SMC, warn_if_collapsed
from boltzmix.compose.samplers.start import choose_path
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State
from boltzmix.compose.wrappers import Wrapper


class Calibrated(Wrapper):
    """A noised term with a fitted offset c(σ), linear in log σ between the levels; made by :func:`calibrate`."""

    levels: Tensor
    offsets: Tensor

    def __init__(self, inner: Term, levels: list[float], offsets: list[float], se: float) -> None:
        """Hold offsets at increasing levels; the first is the data end."""
        super().__init__(inner)
        own = next((t for t in (*inner.parameters(), *inner.buffers()) if t.is_floating_point()), torch.zeros(()))
        self.register_buffer("levels", torch.tensor(levels, dtype=own.dtype, device=own.device))
        self.register_buffer("offsets", torch.tensor(offsets, dtype=own.dtype, device=own.device))
        self.log_z_se = se
        self.calibrated = True
        self.normalized = True

    def _token(self) -> Any:
        return ("calibrated", id(self))

    def offset(self, sigma: Tensor | None) -> Tensor:
        """c(σ) = log Z(σ) of the inner energy, shaped like σ; beyond the last level that of the last."""
        if sigma is None:
            return self.offsets[0]
        level = sigma.to(self.levels).clamp(max=self.levels[-1])
        k = torch.bucketize(level, self.levels).clamp(min=1, max=len(self.levels) - 1)
        low, high = self.levels[k - 1], self.levels[k]
        share = torch.where(low > 0, (level / low).log() / (high / low).log(), level / high)
        return torch.lerp(self.offsets[k - 1], self.offsets[k], share)

    def _shift(self, energy: Tensor, sigma: Any) -> Tensor:
        return energy + self.offset(sigma).to(energy)

    def _evaluate_together(self, terms: Any, x: State, sigma: Any, energy: bool, score: bool) -> Any:
        raise AssertionError("every calibrated term has a group of its own")

    def _group(self) -> None:
        return None

    def _energy(self, x: State, sigma: Any) -> Tensor:
        return self._shift(self.inner._energy(x, sigma), sigma)

    def _energy_and_score(self, x: State, sigma: Any) -> tuple[Tensor, State]:
        energy, score = self.inner._energy_and_score(x, sigma)
        return self._shift(energy, sigma), score

    def _given(self, **condition: object) -> Term:
        raise TypeError("an offset belongs to one condition: write calibrate(term.given(...))")

    def name(self) -> str:
        """The inner term's name, marked."""
        return f"calibrated {self.inner.name()}"


def calibrate(term: Term, n: int = 2000, *, seed: int = 0, cess: float = 0.98) -> Calibrated:
    """Fit the offset c(σ) of a noised term's energy so that it is normalised at every level.

    Args:
        term: a noised term with an energy over one variable, conditioned where it is conditional.
        n: particles of the SMC run that finds log Z(σ).
        seed: of that run.
        cess: conditional effective sample size per level.

    Raises:
        MissingEnergy: the term has only a score.
        TypeError: the term is not noised.
    """
    if not isinstance(term, Term):
        raise TypeError(f"calibrate() takes a term, got {type(term).__name__}")
    if not term.has_energy:
        raise MissingEnergy(f"calibrate() fits the constant of an energy and {term.name()} has only a score")
    if term.path != "noised":
        raise TypeError(f"calibrate() needs a noised term, {term.name()} is {term.path}")
    sampler = SMC(path="noise", cess=cess)
    generator = torch.Generator(device=device_of(term)).manual_seed(seed)
    request = Request(term, n, generator, seed, "calibration", progress=False)
    with frozen(term), torch.no_grad():
        path, _, _ = choose_path(request.view(), request, "noise")
        assert isinstance(path, NoisePath)
        plan = replace(sampler._plan(), longest=1 / 48)  # c(σ) is wanted between the levels too
        run = begin(path, plan, n, generator)
        found = [(path.describe(0.0)["sigma"], run.cloud.log_z)]
        descend(path, plan, run, generator, save=lambda r: found.append((path.describe(r.u)["sigma"], r.cloud.log_z)))
        warn_if_collapsed(sampler, run)
        found += _above(path, n, generator)
    found.sort()
    return Calibrated(term, [s for s, _ in found], [z for _, z in found], run.cloud.log_z_se())


def _above(path: NoisePath, n: int, generator: torch.Generator) -> list[tuple[float, float]]:
    """(σ, log Z) above the start of the path, where the matched Gaussian is an importance density that fits."""
    found, sigma, top = [], path.sigma, min(path.view.term.sigma_range[1], 1e3)
    while sigma < top:
        sigma = min(1.25 * sigma, top)
        x, log_q = gaussian_draws(path.mean, path.variance * (sigma / path.sigma) ** 2, n, generator)
        logs = -path.view.at(sigma).energy(x) - log_q
        found.append((sigma, float(logs.double().logsumexp(0)) - math.log(n)))
    return found
