r"""A ladder of temperatures, with step sizes and masses at each, for parallel tempering.

Let :math:`r_i` be how often neighbours i and i + 1 are refused a swap. The *communication barrier* up to β is the sum
of the :math:`r_i` below it, and :math:`\Lambda` that of all. A ladder is best where the :math:`r_i` are equal, which
interpolating the barrier and cutting it into equal pieces gives; and best for its cost with 2Λ pairs (Syed,
Bouchard-Côté, Deligiannidis and Doucet, 2021, *Non-reversible parallel tempering*, sections 5.1 to 5.4).

The warm-up is cut into rounds of doubling length. Each ends with a new ladder, new variances from the draws and scores
of all chains at each temperature (:math:`\sqrt{\mathrm{var}(x) / \mathrm{var}(s)}`, or var(x) for kernels without
scores), and step sizes that begin anew. The last fifth adapts step sizes only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, check_acceptance, joined, part
from boltzmix.compose.adaptation.dual_averaging import DualAveraging
from boltzmix.compose.adaptation.moments import Moments
from boltzmix.compose.kernels.base import Info, Kernel, State, Target
from boltzmix.compose.kernels.ladder_record import suggested
from boltzmix.compose.kernels.tempered import Parts, weights_of
from boltzmix.compose.kernels.tempering import ParallelTempering, TemperedInfo, TemperedState

_SHARED_FROM = 3  # rounds after which chains share a step size at each temperature


@dataclass(frozen=True)
class Temperatures(Adaptation):
    """The ladder of :class:`~boltzmix.compose.kernels.tempering.ParallelTempering` and its inner kernel.

    Args:
        most: temperatures at most, where their number is adapted.
        mass: whether the inner kernel's masses are adapted, where it has none of its own and a step size to adapt.
        target_acceptance: that step sizes aim at; None is the inner kernel's own.
    """

    most: int = 64
    mass: bool = True
    target_acceptance: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 2:
            raise ValueError(f"most is an int >= 2, got {self.most!r}")
        check_acceptance(self.target_acceptance)

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "TemperatureTuner":
        """A tuner for ``warmup`` transitions from ``state``.

        Raises:
            TypeError: another kernel.
        """
        if not isinstance(kernel, ParallelTempering) or not isinstance(state, TemperedState):
            raise TypeError(f"Temperatures adapts ParallelTempering, got {type(kernel).__name__}")
        return TemperatureTuner(self, kernel, target, state, warmup)


def round_ends(warmup: int, first: int = 8) -> list[int]:
    """Where rounds of doubling length end, the last at four fifths of the warm-up."""
    ends, at, width, last = [], 0, first, warmup - max(warmup // 5, 1)
    while at < last:
        at = at + width
        if at + 2 * width > last:
            at = last
        ends.append(at)
        width = 2 * width
    return ends


class TemperatureTuner(Tuner):
    """A warm-up of parallel tempering in progress."""

    def __init__(
        self, settings: Temperatures, kernel: ParallelTempering, target: Target, state: TemperedState, warmup: int
    ) -> None:
        """Begin with the kernel's own ladder and small step sizes."""
        self.settings, self.kernel = settings, kernel
        inner, x = kernel.kernel, state.x
        self.like, self.step, self.rounds = x, 0, 0
        self.ends = round_ends(warmup)
        self.betas = kernel.betas(x.shape[1]).to(x)
        self.spaced = not isinstance(kernel.temperatures, tuple)
        self.counted = kernel.temperatures is None
        self.stepped = inner.adapts
        self.weighed = settings.mass and inner.adapts and inner.inverse_mass is None and inner.moves == "real"
        self.variances = kernel.scales(self.betas, x.shape[1])
        self.fresh = inner.initial_step_size(x.shape[1])
        bound = getattr(inner, "largest_step_size", None)  # where everything is accepted steps would grow without one
        self.largest = 1e6 * self.fresh if bound is None else bound(target)
        begin = 0.1 * self.fresh if self.stepped else float(inner.tune(x).step_size.mean())
        guess = torch.full((len(x), len(self.betas)), begin, dtype=x.dtype, device=x.device)
        self.averaging = DualAveraging(guess, settings.target_acceptance or inner.target_acceptance)
        self.sources: Tensor | None = None  # where the replicas of a new ladder come from
        self._empty()
        self._retune()

    def _empty(self) -> None:
        self.refused = torch.zeros(len(self.betas) - 1, dtype=torch.float64, device=self.like.device)
        self.count = 0
        # of draws and of scores, at all temperatures side by side
        wide = self.like.new_zeros(1, len(self.betas) * self.like.shape[1])
        self.draws, self.scores = Moments(wide), Moments(wide)

    def _retune(self) -> None:
        steps = self.averaging.step_size.clamp(max=self.largest)
        self.tune = self.kernel.ladder(self.betas, steps, self.variances)

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        assert isinstance(state, TemperedState)
        assert isinstance(info, TemperedInfo)
        assert info.rates is not None
        assert info.swaps is not None
        self.step += 1
        if self.stepped:
            rates = torch.nan_to_num(info.rates, nan=self.averaging.goal)
            self.averaging.update(rates.mean(0) if self.averaging.step_size.ndim == 1 else rates)
        if self.rounds < len(self.ends):
            self.refused = self.refused + (1.0 - info.swaps.double()).mean(0)
            if self.weighed:
                self._learn(state)
            self.count += 1
            if self.step == self.ends[self.rounds]:
                self._close()
        self._retune()

    def _learn(self, state: TemperedState) -> None:
        self.draws.update(state.replicas.flatten(1))
        if self.kernel.uses_score:
            parts = Parts(state.energies.double(), state.scores.double())
            self.scores.update(parts.at(weights_of(self.betas.double(), parts.energies.shape[-1]))[1].flatten(1))

    def _close(self) -> None:
        """The end of a round: masses, then the ladder, then step sizes."""
        if self.weighed:
            self.variances = self._estimate()
        steps = (self.averaging.averaged() if self.stepped else self.averaging.step_size).clamp(max=self.largest)
        if self.stepped and self.weighed:
            steps = torch.full_like(steps, self.fresh)
        self.rounds += 1
        if self.rounds >= _SHARED_FROM or self.rounds == len(self.ends):
            steps = steps.median(0).values if steps.ndim == 2 else steps
        if self.spaced:
            refused = self.refused / self.count
            wanted = len(self.betas)
            if self.counted:
                wanted = min(suggested(float(refused.sum())), self.settings.most, 2 * wanted)
            old, logs = self.betas, self.kernel.reference is None
            betas = equalised(old.double(), refused, wanted, logs).to(old)
            steps = regridded(steps, old, betas)
            if self.variances is not None:
                self.variances = regridded(self.variances.mT, old, betas).mT.contiguous()
            if wanted != len(old):
                nearest = (betas[:, None] - old).abs().argmin(1)
                nearest[0], nearest[-1] = 0, len(old) - 1
                if self.kernel.reference is not None and wanted > 1:  # the reference's own replica stays alone
                    nearest[1:] = nearest[1:].clamp(min=1)
                self.sources = nearest
            self.betas = betas
        self.averaging.restart(steps)
        self._empty()

    def _estimate(self) -> Tensor | None:
        seen = self.count * len(self.like)
        assert self.variances is not None
        draws, scores = (m.covariance().view_as(self.variances) for m in (self.draws, self.scores))
        found = (draws / scores).sqrt() if self.kernel.uses_score else draws
        good = torch.isfinite(found) & (found > 0)
        old = self.variances.double()
        # few draws say little: five of them weigh as much as what was known before
        mixed = torch.exp((seen * found.log() + 5 * old.log()) / (seen + 5))
        return torch.where(good, mixed, old).to(self.variances)

    def carry(self, state: State) -> State:
        """The state at the new ladder: replicas that are added come from their nearest neighbour."""
        if self.sources is None:
            return state
        assert isinstance(state, TemperedState)
        rows, self.sources = self.sources, None
        kept = state.tensors()
        found = {name: kept[name][:, rows] for name in ("replicas", "energies", "scores")}
        for name, value in state.carried.items():
            alone = state.replicas.shape[1] - value.shape[1]  # the reference's own replica carries nothing
            found[f"carried/{name}"] = value[:, rows[alone:] - alone]
        visited = torch.zeros(len(state.x), len(rows), dtype=torch.bool, device=state.x.device)
        return state.having({**found, "visited": visited})

    def finish(self) -> Any:
        """Ladder, averaged step sizes and masses."""
        steps = self.averaging.averaged() if self.stepped else self.averaging.step_size
        if steps.ndim == 2:
            steps = steps.median(0).values
        self.tune = self.kernel.ladder(self.betas, steps.clamp(max=self.largest), self.variances)
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        averaging, count = self.averaging.snapshot()
        (draws, seen), (scores, scored) = self.draws.snapshot(), self.scores.snapshot()
        tensors = joined(averaging=averaging, draws=draws, scores=scores)
        tensors |= {"betas": self.betas, "refused": self.refused}
        if self.variances is not None:
            tensors["variances"] = self.variances
        numbers = {"step": self.step, "rounds": self.rounds, "count": self.count}
        return tensors, {**numbers, "averaging": count, "draws": seen, "scores": scored}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        self.averaging.restore(part(tensors, "averaging/"), state["averaging"])
        self.betas, self.refused = tensors["betas"], tensors["refused"]
        self.draws.restore(part(tensors, "draws/"), state["draws"])
        self.scores.restore(part(tensors, "scores/"), state["scores"])
        self.variances = tensors.get("variances")
        self.step, self.rounds, self.count = state["step"], state["rounds"], state["count"]
        self._retune()


def equalised(betas: Tensor, refused: Tensor, number: int, logs: bool) -> Tensor:
    """A ladder of ``number`` β between the same ends with equal rates of refusal.

    The barrier is interpolated in log β, or in β^(1/4) where the ladder begins at the reference: it is steepest there.
    """
    scale = betas.log() if logs else betas**0.25
    # a ladder stays strictly increasing where nothing is ever refused
    rates = refused + 1e-2 * refused.mean() + 1e-6
    barrier = torch.cat([rates.new_zeros(1), rates.cumsum(0)])
    goals = torch.linspace(0.0, float(barrier[-1]), number, dtype=barrier.dtype, device=barrier.device)
    found = interpolated(goals, barrier, scale)
    found = found.exp() if logs else found**4
    found[0], found[-1] = betas[0], betas[-1]
    return found


def regridded(values: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Positive values ``(…, T)`` at the β of another ladder, interpolated in their logarithm."""
    return interpolated(new, old, values.log()).exp()


def interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear interpolation of ``y`` ``(…, T)`` over increasing ``x`` ``(T,)``, at points inside."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = ((at - x[left]) / (x[right] - x[left])).clamp(0.0, 1.0)
    return y[..., left] + share.to(y) * (y[..., right] - y[..., left])
