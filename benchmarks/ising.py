r"""Ising and Potts models on small lattices, with exact answers.

Spins :math:`s_i = \pm 1` on an L × L lattice, :math:`E(s) = -\beta \sum_{\langle ij \rangle} s_i s_j`, each bond once;
states of the term are x = (s + 1) / 2 ∈ {0, 1}. With rows r of L spins, the transfer matrix

.. math:: T_{rr'} = \exp\Big[\beta \sum_j r_j r'_j + \beta \sum_j r'_j r'_{j+1}\Big]

has :math:`2^L` rows, and :math:`Z = \operatorname{tr} T^L` on a torus. Counting up-spins with a polynomial in t, whose
power goes up with each row, gives the distribution of the magnetisation; derivatives of log Z with respect to β give
energy and heat capacity. The infinite lattice orders at :math:`\beta_c = \log(1 + \sqrt 2) / 2` (Onsager, 1944).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.callables import term
from boltzmix.compose.kernels import DiscreteLangevin, Gibbs, GibbsWithGradients, Kernel, ParallelTempering
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC
from boltzmix.compose.term import Term

CRITICAL = math.log(1 + math.sqrt(2)) / 2
#: inverse temperatures of the rows: disordered, critical, ordered
BETAS = (0.25, CRITICAL, 0.6)
#: of the tempered kernel, from the temperature of the row to 2.5 times as much
LADDER = (1.0, 1.2, 1.45, 1.85, 2.5)


def bonds(spins: Tensor, periodic: bool) -> Tensor:
    r""":math:`\sum_{\langle ij \rangle} s_i s_j` of lattices ``(…, L, L)``; a torus has 2 L² bonds."""
    if periodic:
        return (spins * (spins.roll(1, -1) + spins.roll(1, -2))).sum((-1, -2))
    across = (spins[..., 1:] * spins[..., :-1]).sum((-1, -2))
    return across + (spins[..., 1:, :] * spins[..., :-1, :]).sum((-1, -2))


def ising(length: int, beta: float, periodic: bool = True) -> Term:
    """The model as a term over integers {0, 1} of shape ``(L, L)``, with a gradient."""

    def energy(x: Tensor) -> Tensor:
        return -beta * bonds(2.0 * x - 1.0, periodic)

    return term(
        energy, kind="energy", event_shape=(length, length), support="integers(2)", relaxed="values", name="ising"
    )


@dataclass(frozen=True)
class IsingTruth:
    """Exact answers at one inverse temperature.

    Attributes:
        log_z: log of the sum over all states.
        bonds: mean of :math:`\\sum s_i s_j`; the energy is −β times it.
        heat_capacity: :math:`\\beta^2 \\operatorname{var}(\\sum s_i s_j)`, of the whole lattice.
        ups: probabilities of 0 … L² up-spins, ``(L² + 1,)``.
    """

    beta: float
    log_z: float
    bonds: float
    heat_capacity: float
    ups: Tensor

    @property
    def magnetisation(self) -> float:
        """Mean of |m|, m the mean spin."""
        size = len(self.ups) - 1
        m = (2 * torch.arange(size + 1, dtype=torch.float64) - size).abs() / size
        return float((self.ups * m).sum())


def rows_of(length: int) -> Tensor:
    """All rows of L spins, ``(2^L, L)`` in float64."""
    bits = (torch.arange(2**length)[:, None] >> torch.arange(length)) & 1
    return 2.0 * bits.double() - 1.0


def ising_truth(length: int, beta: float, periodic: bool = True) -> IsingTruth:
    """Exact answers for an L × L lattice by transfer matrices; L ≤ 8 takes seconds."""
    spins = rows_of(length)
    within = (spins * spins.roll(1, 1)).sum(1) if periodic else (spins[:, 1:] * spins[:, :-1]).sum(1)
    between = spins @ spins.T
    strength = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    step = (strength * between).exp() * (strength * within).exp()  # [r, r']
    log_scale = torch.zeros((), dtype=torch.float64)
    product = torch.diag((strength * within).exp())
    for _ in range(length - 1):
        product = product @ step
        top = product.detach().max()
        product, log_scale = product / top, log_scale + top.log()
    total = (product * (strength * between).exp().T).sum() if periodic else product.sum()
    log_z = total.log() + log_scale
    (first,) = torch.autograd.grad(log_z, strength, create_graph=True)
    (second,) = torch.autograd.grad(first, strength)
    ups = _ups(length, beta, spins, within, between, periodic)
    return IsingTruth(beta, float(log_z.detach()), float(first.detach()), float(beta**2 * second), ups)


def _ups(length: int, beta: float, spins: Tensor, within: Tensor, between: Tensor, periodic: bool) -> Tensor:
    """Distribution of the number of up-spins: the product of transfer matrices with a power of t for each row."""
    count = ((spins.sum(1) + length) / 2).long()
    own, step = (beta * within).exp(), (beta * between).exp() * (beta * within).exp()
    size = length * length + 1
    first = torch.diag(own) if periodic else own[None]  # rows of the first lattice row, kept apart on a torus
    tensor = torch.zeros(*first.shape, size, dtype=torch.float64)
    tensor.scatter_(2, count.expand(first.shape)[..., None], first[..., None])
    for _ in range(length - 1):
        moved = torch.einsum("frk,rs->fsk", tensor, step)
        power = torch.arange(size) - count[:, None]  # [s, k]: where the power came from
        gathered = moved.gather(2, power.clamp(min=0).expand_as(moved))
        tensor = torch.where(power >= 0, gathered, 0.0)
        tensor = tensor / tensor.max()
    if periodic:
        tensor = tensor * (beta * between).exp()[..., None]
    found = tensor.sum((0, 1))
    return found / found.sum()


# -------------------------------------------------------------------------------- Potts


def potts(length: int, states: int, beta: float) -> Term:
    r"""The Potts model :math:`E = -\beta \sum_{\langle ij \rangle} [x_i = x_j]` on a lattice that does not wrap."""

    def energy(u: Tensor) -> Tensor:  # (N, L, L, K)
        across = (u[:, 1:] * u[:, :-1]).sum((1, 2, 3))
        return -beta * (across + (u[:, :, 1:] * u[:, :, :-1]).sum((1, 2, 3)))

    return term(
        energy, kind="energy", event_shape=(length, length), support=f"integers({states})", relaxed="one_hot",
        name="potts",
    )  # fmt: skip


def every_state(target: Term) -> tuple[Tensor, Tensor]:
    """All states ``(M, *event)`` of a discrete term over one variable, and their probabilities ``(M,)`` in float64."""
    shape, k = target.event_shape, target.variables.levels  # pyright: ignore[reportAttributeAccessIssue]
    size = torch.Size(shape).numel()
    digits = torch.arange(k**size)[:, None] // k ** torch.arange(size) % k
    states = digits.reshape(-1, *shape)
    return states, target.energy(states).double().neg().softmax(0)


# --------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Case:
    name: str
    kernel: Kernel
    draws: int
    thin: int = 1


def cases(quick: bool) -> list[_Case]:
    """Kernels, with numbers of draws that make their costs comparable."""
    part = 8 if quick else 1
    return [
        _Case("Gibbs", Gibbs(), 800 // part),
        _Case("Gibbs, random order", Gibbs(scan="random"), 800 // part),
        _Case("Gibbs, rows at once", Gibbs(blocks=6), 400 // part),
        _Case("GibbsWithGradients", GibbsWithGradients(), 800 // part, 16),
        _Case("GibbsWithGradients, exact", GibbsWithGradients(differences="exact"), 400 // part, 16),
        _Case("DiscreteLangevin", DiscreteLangevin(), 1600 // part, 4),
        _Case("Gibbs, tempered", ParallelTempering(Gibbs(), temperatures=LADDER), 400 // part),
    ]


def ising_rows(
    seeds: Sequence[int],
    quick: bool = False,
    progress: Callable[[str], Any] | None = None,
    betas: Sequence[float] = BETAS,
    chains: int = 64,
    more: Sequence[tuple[str, Kernel, int, int]] = (),
) -> list[dict[str, Any]]:
    """Ising 6 × 6 on a torus by kernel, temperature and seed: what chains find, and what is exact.

    Half of the chains start with all spins up and half with all down, so that energies and |m| are those of both phases
    also where a chain does not cross from one to the other within a run. Errors are in Monte Carlo standard errors,
    from the means of independent chains.

    Args:
        seeds: one run for each.
        quick: an eighth of the draws.
        progress: called with a line for each run.
        betas: inverse temperatures.
        chains: number of chains.
        more: further kernels, as (name, kernel, draws, thin).
    """
    found = []
    for beta in betas:
        target, truth = ising(6, beta), ising_truth(6, beta)
        for case in [*cases(quick), *(_Case(*row) for row in more)]:
            for seed in seeds:
                row = _row(target, truth, case, seed, chains)
                found.append(row)
                if progress is not None:
                    progress(
                        f"ising β={beta:.3f} {case.name}: energy {row['energy']:.3f} ({row['energy_z']:+.1f} se), "
                        f"|m| {row['magnetisation']:.4f} ({row['magnetisation_z']:+.1f} se)"
                    )
    return found


def _row(target: Term, truth: IsingTruth, case: _Case, seed: int, chains: int) -> dict[str, Any]:
    clock = time.perf_counter()
    start = torch.zeros(chains, *target.event_shape, dtype=torch.long)
    start[::2] = 1
    sampler = MCMC(case.kernel, warmup=case.draws * case.thin // 2, draws=case.draws, thin=case.thin)
    draw = sample(target, chains=chains, sampler=sampler, init=start, seed=seed)
    assert isinstance(draw.x, Tensor)
    spins = 2.0 * draw.x.double() - 1.0
    energy = -truth.beta * bonds(spins, True)  # (chains, draws)
    m = spins.mean((-1, -2))

    def judged(values: Tensor, exact: float) -> tuple[float, float, float]:
        means = values.mean(1)
        error = float(means.std() / math.sqrt(len(means)))
        return float(means.mean()), error, (float(means.mean()) - exact) / error

    energy_exact = -truth.beta * truth.bonds
    mean_energy, energy_se, energy_z = judged(energy, energy_exact)
    mean_m, m_se, m_z = judged(m.abs(), truth.magnetisation)
    size = len(truth.ups) - 1
    ups = torch.bincount(((m + 1) * size / 2).round().long().flatten(), minlength=size + 1).double()
    folded, exact = ups + ups.flip(0), truth.ups + truth.ups.flip(0)
    return {
        "kernel": case.name, "beta": truth.beta, "temperature": 1 / truth.beta, "seed": seed, "chains": chains,
        "draws": case.draws, "thin": case.thin,
        "energy": mean_energy, "energy_exact": energy_exact, "energy_se": energy_se, "energy_z": energy_z,
        "magnetisation": mean_m, "magnetisation_exact": truth.magnetisation, "magnetisation_se": m_se,
        "magnetisation_z": m_z,
        "heat_capacity": float(energy.var()), "heat_capacity_exact": truth.heat_capacity,
        "magnetisation_tv": float(0.5 * (folded / folded.sum() - exact / exact.sum()).abs().sum()),
        "crossed": float(((m > 0.5).any(1) & (m < -0.5).any(1)).double().mean()),
        "evaluations": draw.info.evaluations, "acceptance": draw.info.acceptance, "step_size": draw.info.step_size,
        "seconds": time.perf_counter() - clock,
    }  # fmt: skip
