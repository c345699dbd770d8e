"""NUTS of Pyro (Bingham et al., 2019, *Pyro: Deep universal probabilistic programming*), one chain after the other.

The target is called from Python, so that gradients are counted there, transition by transition.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import Budget, MethodRun
from boltzmix.benchmarks.peers.base import Peer
from boltzmix.benchmarks.tally import Tally


@dataclass(frozen=True)
class PyroNUTS(Peer):
    """NUTS with the library's adaptation: diagonal mass, target acceptance 0.8, trees of depth at most 10.

    Without a warm-up the evaluation at the start is part of what the first draw cost.
    """

    library: ClassVar[str] = "Pyro"
    algorithm: ClassVar[str] = "NUTS"
    packages: ClassVar[tuple[str, ...]] = ("pyro",)

    def _run(self, density: Density, starts: Tensor, budget: Budget, seed: int) -> MethodRun:
        with torch.random.fork_rng(devices=[]):  # the library draws from torch's global generator
            torch.manual_seed(seed)
            chains = [_chain(density, start, budget) for start in starts.to(self.dtype)]

        def mean(name: str) -> float:
            return sum(c[name] for c in chains) / len(chains)

        return MethodRun(
            self.name, density.name, seed,
            draws=torch.stack([c["x"] for c in chains]).double(),
            gradients=torch.stack([c["gradients"] for c in chains]),
            tuning_gradients=mean("tuning_gradients"),
            seconds={"compile": 0.0, **{part: sum(c[part] for c in chains) for part in ("tuning", "sampling")}},
            divergences=sum(c["divergences"] for c in chains),
            numbers={
                **{name: mean(name) for name in ("step_size", "acceptance", "length")},
                "variances": torch.stack([c["mass"] for c in chains]).mean(0).tolist(),
            },
        )  # fmt: skip


def _chain(density: Density, start: Tensor, budget: Budget) -> dict[str, Any]:
    """One chain; its marks are the rows evaluated and the CPU seconds after every transition."""
    from pyro.infer import MCMC, NUTS

    tally, rows, clock, last = Tally(), [0], [time.process_time()], {}
    log_prob = tally.of(density.log_prob)

    def energy(point: dict[str, Tensor]) -> Tensor:
        return -log_prob(point["x"][None])[0]

    def mark(kernel: Any, point: Any, stage: str, number: int) -> None:
        rows.append(tally.rows)
        clock.append(time.process_time())
        if stage.startswith("Sample") and number == budget.draws - 1:  # the library forgets it when the chain ends
            last.update(kernel.diagnostics())
            last.update(step_size=float(kernel.step_size), mass=next(iter(kernel.inverse_mass_matrix.values())))

    chain = MCMC(
        NUTS(potential_fn=energy), num_samples=budget.draws, warmup_steps=budget.warmup, num_chains=1,
        initial_params={"x": start.clone()}, disable_progbar=True, hook_fn=mark,
    )  # fmt: skip
    chain.run()
    gradients = torch.tensor(rows, dtype=torch.float64).diff()[budget.warmup :]
    return {
        "x": chain.get_samples()["x"],
        "gradients": gradients,
        "tuning_gradients": float(rows[budget.warmup]),
        "tuning": clock[budget.warmup] - clock[0],
        "sampling": clock[-1] - clock[budget.warmup],
        "divergences": len(last["divergences"]),
        "acceptance": float(last["acceptance rate"]),
        "step_size": last["step_size"],
        "mass": last["mass"].detach().double(),
        "length": float(gradients.mean()),
    }
