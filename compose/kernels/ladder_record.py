r"""What parallel tempering leaves behind besides its draws: swaps, round trips, and log Z.

Between neighbours i and j = i + 1, with :math:`\delta = \beta_j - \beta_i` and V = dE_β/dβ, the geometric bridge (Meng
and Wong, 1996, *Simulating ratios of normalizing constants via a simple identity*) is

.. math:: \log\frac{Z_j}{Z_i} = \log E_i\!\left[e^{-\delta V / 2}\right] - \log E_j\!\left[e^{\delta V / 2}\right],

and from a normalised reference the sum over all neighbours is log Z. Cells of the run, chains or stretches of a chain,
are left out one by one for its standard error (the jackknife).
"""

import math
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import Info, Recorder, State

_CELLS = 32  # that a standard error is made of, at least


class LadderRecord(Recorder):
    """Running sums over the transitions that are kept.

    Args:
        evidence: whether the ladder begins at a normalised density.
        chains: N.
        transitions: how many there will be.
    """

    def __init__(self, evidence: bool, chains: int, transitions: int) -> None:
        """Start empty."""
        self.evidence, self.chains, self.transitions = evidence, chains, transitions
        self.blocks = max(1, min(math.ceil(_CELLS / chains), transitions))
        self.count = 0
        self.betas = self.swaps = self.sums = torch.zeros(0, dtype=torch.float64)
        self.trips = 0

    def update(self, state: State, info: Info, tune: Any) -> None:
        """Add one transition."""
        from boltzmix.compose.kernels.tempered import Parts
        from boltzmix.compose.kernels.tempering import TemperedInfo, TemperedState

        assert isinstance(state, TemperedState)
        assert isinstance(info, TemperedInfo)
        assert info.swaps is not None
        assert info.trips is not None
        if not self.count:
            self.betas = tune.betas.to(torch.float64, copy=True)  # a checkpoint holds no tensor twice
            self.swaps = torch.zeros(len(self.betas) - 1, dtype=torch.float64, device=state.x.device)
            shape = (self.blocks, self.chains, 2, len(self.betas) - 1)
            self.sums = torch.full(shape, -torch.inf, dtype=torch.float64, device=state.x.device)
        self.swaps = self.swaps + info.swaps.double().mean(0)
        self.trips += int(info.trips.sum())
        if self.evidence:
            block = min(self.count * self.blocks // self.transitions, self.blocks - 1)
            terms = bridge(self.betas, Parts(state.energies.double(), state.scores).slope)
            self.sums[block] = torch.logaddexp(self.sums[block], terms)
        self.count += 1

    def log_z(self) -> tuple[float, float] | None:
        """The evidence and its standard error; None where the ladder does not begin at a normalised density."""
        if not self.evidence or not self.count:
            return None
        return evidence(self.sums.flatten(0, 1))

    def extra(self) -> dict[str, Any]:
        """For ``draw.info.extra``."""
        if not self.count:
            return {}
        accepted = self.swaps / self.count
        barrier = float((1.0 - accepted).sum())
        return {
            "temperatures": [1.0 / b if b else math.inf for b in reversed(self.betas.tolist())],
            "swap_acceptance": accepted.flip(0).tolist(),
            "round_trips": self.trips,
            "barrier": barrier,
            "suggested_temperatures": suggested(barrier),
        }

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        tensors = {"betas": self.betas, "swaps": self.swaps, "sums": self.sums}
        return tensors, {"count": self.count, "trips": self.trips}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.betas, self.swaps, self.sums = tensors["betas"], tensors["swaps"], tensors["sums"].clone()
        self.count, self.trips = state["count"], state["trips"]


def suggested(barrier: float) -> int:
    """The number of temperatures for which a replica's way down costs least: 2 Λ pairs (Syed et al., 2021)."""
    return max(3, 1 + round(2.0 * barrier))


def bridge(betas: Tensor, slope: Tensor) -> Tensor:
    """−δV/2 at the hotter and +δV/2 at the colder of each pair ``(N, 2, T − 1)``; NaN, undefined, weighs nothing."""
    half = 0.5 * (betas[1:] - betas[:-1])
    terms = torch.stack([-half * slope[:, :-1], half * slope[:, 1:]], 1)
    return torch.where(torch.isnan(terms), -torch.inf, terms)


def evidence(sums: Tensor) -> tuple[float, float]:
    """log Z and its jackknife standard error from log-sums of cells ``(M, 2, T − 1)``."""

    def ratio(totals: Tensor) -> Tensor:
        return (totals[..., 0, :] - totals[..., 1, :]).sum(-1)

    cells = len(sums)
    whole = sums.logsumexp(0)
    if cells < 2:
        return float(ratio(whole)), math.nan
    share = (sums - whole).exp().clamp(max=1.0)  # of each cell in the totals
    left = ratio(whole + torch.log1p(-share))
    spread = (left - left.mean()).square().sum() * (cells - 1) / cells
    return float(ratio(whole)), math.sqrt(float(spread))
