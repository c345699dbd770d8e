r"""Samplers of torchebm, which come without adaptation, effective sizes or a word on what they evaluated.

They call the target from Python, where it counts: a transition of its HMC takes 2 L gradients for L leapfrog steps and
two energies besides. Proposals that are not finite become zeros and may be accepted (its ``safe`` integration), so that
neither divergences nor non-finite draws are ever seen; the figures beside the truth show it.

Without a step size, the warm-up finds one: 20 rounds of the library's own HMC, after each of which
:math:`\log \epsilon` moves by the difference between the share of proposals accepted and what is aimed at.
"""

# pyright: reportMissingImports=false

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers.base import Peer
from boltzmix.benchmarks.peers.blackjax import positive
from boltzmix.benchmarks.tally import Tally

_ROUNDS = 20


@dataclass(frozen=True)
class TorchEBM(Peer):
    """All chains as one batch, with a step size that is given or found in the warm-up.

    Args:
        step_size: nothing is adapted, and the warm-up's transitions are thrown away; None looks for one.
    """

    step_size: float | None = None
    library: ClassVar[str] = "torchebm"
    packages: ClassVar[tuple[str, ...]] = ("torchebm",)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        positive("step_size", self.step_size)

    @abstractmethod
    def _sampler(self, model: Any, step_size: float) -> Any:
        """The library's object."""

    @abstractmethod
    def _cost(self) -> float:
        """Rows that a transition evaluates for each chain."""

    @abstractmethod
    def _found(self, model: Any, x: Tensor, warmup: int, generator: torch.Generator) -> tuple[float, Tensor]:
        """A step size, and where the chains are after looking for it."""

    def _run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        tally, generator = Tally(), torch.Generator().manual_seed(seed)
        model = energy_model(tally.of(density.log_prob), self.dtype)
        clock, x = time.process_time(), starts.to(self.dtype)
        if self.step_size is None:
            if budget.warmup < 1:
                raise ValueError(f"{self.name} finds its step size in the warm-up: give it one, or a step_size")
            step_size, x = self._found(model, x, budget.warmup, generator)
        else:
            step_size = self.step_size
            if budget.warmup:
                x = moved(self._sampler(model, step_size), x, budget.warmup, generator)[:, -1]
        before, middle = tally.rows, time.process_time()
        draws = moved(self._sampler(model, step_size), x, budget.transitions(self._cost()), generator)
        end = time.process_time()
        cost = (tally.rows - before) / (draws.shape[0] * draws.shape[1])
        return MethodRun(
            self.name, density.name, seed, draws.double(),
            gradients=torch.full(draws.shape[:2], cost, dtype=torch.float64),
            tuning_gradients=before / len(starts),
            seconds={"compile": 0.0, "tuning": middle - clock, "sampling": end - middle},
            numbers={"step_size": step_size, "acceptance": accepted(x, draws), "length": self._length()},
        )  # fmt: skip

    def _length(self) -> int:
        return 1


def energy_model(log_prob: Any, dtype: torch.dtype) -> Any:
    """−log p as the library's model."""
    from torchebm.core import BaseModel

    class Energy(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return -log_prob(x)

    return Energy(dtype=dtype)


def moved(sampler: Any, x: Tensor, transitions: int, generator: torch.Generator) -> Tensor:
    """States after every transition, ``(chains, transitions, D)``."""
    return sampler.sample(x=x, n_steps=transitions, return_trajectory=True, generator=generator)


def accepted(x: Tensor, draws: Tensor) -> float:
    """Share of transitions after which a chain is somewhere else."""
    before = torch.cat([x[:, None], draws[:, :-1]], 1)
    return float((before != draws).any(-1).double().mean())


def searched(hmc: "TorchEBMHMC", model: Any, x: Tensor, warmup: int, aim: float, generator: torch.Generator) -> Any:
    """The step at which a share ``aim`` of proposals is accepted: mean of the logarithms of the second half."""
    rounds, log_step, steps = min(_ROUNDS, warmup), 0.0, []
    for k in range(rounds):
        length = warmup * (k + 1) // rounds - warmup * k // rounds
        draws = moved(hmc._sampler(model, math.exp(log_step)), x, length, generator)
        log_step += 2.0 * (accepted(x, draws) - aim) / math.sqrt(k + 1)
        steps.append(log_step)
        x = draws[:, -1]
    late = steps[len(steps) // 2 :]
    return math.exp(sum(late) / len(late)), x


@dataclass(frozen=True)
class TorchEBMHMC(TorchEBM):
    """Its HMC with unit mass; the step size aims at an acceptance of 0.8.

    Args:
        num_leapfrog: leapfrog steps of a transition, by default the library's own number.
    """

    num_leapfrog: int = 10
    algorithm: ClassVar[str] = "HMC"

    def _sampler(self, model: Any, step_size: float) -> Any:
        from torchebm.samplers import HamiltonianMonteCarlo

        return HamiltonianMonteCarlo(model, step_size=step_size, n_leapfrog_steps=self.num_leapfrog, dtype=self.dtype)

    def _cost(self) -> float:
        return 2.0 * self.num_leapfrog + 2.0

    def _length(self) -> int:
        return self.num_leapfrog

    def _found(self, model: Any, x: Tensor, warmup: int, generator: torch.Generator) -> tuple[float, Tensor]:
        return searched(self, model, x, warmup, 0.8, generator)


@dataclass(frozen=True)
class TorchEBMLangevin(TorchEBM):
    r"""Its Langevin dynamics, :math:`x' = x + \tau \nabla \log p(x) + \sqrt{2 \tau} \xi`, unadjusted and biased by τ.

    Without a step size, :math:`\tau = \epsilon^2 / 2` of the leapfrog step that a Metropolis test would accept nine
    times in ten, found with the library's HMC.
    """

    algorithm: ClassVar[str] = "Langevin"

    def _sampler(self, model: Any, step_size: float) -> Any:
        from torchebm.samplers import LangevinDynamics

        return LangevinDynamics(model, step_size=step_size, dtype=self.dtype)

    def _cost(self) -> float:
        return 1.0

    def _found(self, model: Any, x: Tensor, warmup: int, generator: torch.Generator) -> tuple[float, Tensor]:
        hmc = TorchEBMHMC(dtype=self.dtype, num_leapfrog=1)
        epsilon, x = searched(hmc, model, x, warmup, 0.9, generator)
        return 0.5 * epsilon * epsilon, x
