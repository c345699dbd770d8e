r"""Parallel tempering: replicas of a chain at several temperatures that exchange their places.

Replica t has the density :math:`\propto e^{-E_{\beta_t}(x)}`, :math:`0 \le \beta_1 < \dots < \beta_T = 1`. Hot ones
cross what separates modes, and swaps hand their places down to the target. With V = dE_β/dβ, neighbours i and
j = i + 1 swap with probability

.. math:: \min\{1, \exp[(\beta_j - \beta_i)(V(x_j) - V(x_i))]\},

which costs no evaluation. Swaps of even and of odd pairs take turns, without chance: replicas then travel through the
ladder instead of diffusing in it, and time for a round trip grows like T instead of T² (Syed, Bouchard-Côté,
Deligiannidis and Doucet, 2021, *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*).
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.kernels.ladder_record import LadderRecord
from boltzmix.compose.kernels.mass import Diagonal, Mass
from boltzmix.compose.kernels.tempered import Ends, Parts, TemperedTarget, weights_of
from boltzmix.compose.term import Term

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

_BASE = {f.name for f in fields(State)}


@dataclass(frozen=True)
class TemperedState(State):
    """The replica at the target, and all of them, from the hottest to the target.

    Attributes:
        replicas: positions ``(N, T, D)``.
        energies, scores: of target and reference, ``(N, T, P)`` and ``(N, T, P, S)``; see
            :class:`~boltzmix.compose.kernels.tempered.Parts`. S = D for kernels of real variables.
        visited: whether the replica has been at the hottest temperature since it last was at the target, ``(N, T)``.
        parity: which pairs swap next, ``(N,)``.
        carried: what the inner kernel carries for each temperature, ``(N, T, …)``. It stays with the temperature when
            replicas swap, so it must be independent of their positions there, as velocities in whitened units are.
        kind: the class of the inner kernel's states.
    """

    replicas: Tensor
    energies: Tensor
    scores: Tensor
    visited: Tensor
    parity: Tensor
    carried: dict[str, Tensor]
    kind: type[State]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; what is carried as ``carried/NAME``."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("carried", "kind")}
        return plain | {f"carried/{name}": value for name, value in self.carried.items()}

    def having(self, tensors: dict[str, Tensor]) -> Self:
        """The state with other tensors."""
        carried = {k.removeprefix("carried/"): v for k, v in tensors.items() if k.startswith("carried/")}
        plain = {k: v for k, v in tensors.items() if not k.startswith("carried/")}
        return replace(self, **plain, carried={**self.carried, **carried})


@dataclass(frozen=True)
class TemperedInfo(Info):
    """Of the replica at the target; and of all.

    Attributes:
        rates: the inner kernel's acceptance at each temperature, ``(N, T)``; NaN where the reference is drawn afresh.
        swaps: acceptance probability of a swap of each pair of neighbours, whether or not it was its turn,
            ``(N, T − 1)``.
        trips: replicas that arrived at the target from the hottest temperature, ``(N,)``.
    """

    rates: Tensor | None = None
    swaps: Tensor | None = None
    trips: Tensor | None = None


@dataclass(frozen=True)
class TemperedTune(Tune):
    """A ladder, and the inner kernel's tuning at each of its steps; ``step_size`` is that of the target.

    Args:
        betas: β, increasing to 1, ``(T,)``.
        steps: step sizes ``(T,)``, or ``(N, T)`` while every chain has its own.
        variances: inverse masses ``(T, D)``; None leaves the inner kernel's own.
    """

    betas: Tensor | None = None
    steps: Tensor | None = None
    variances: Tensor | None = None

    def inner(self, n: int, first: int, own: Mass | None) -> Tune:
        """For the rows of n chains at the temperatures from ``first`` on."""
        assert self.steps is not None
        steps = self.steps[..., first:].expand(n, -1).reshape(-1)
        if self.variances is None:
            return Tune(steps, own)
        return Tune(steps, Diagonal(self.variances[first:].expand(n, -1, -1).flatten(0, 1)))


@dataclass(frozen=True)
class TemperedNoise:
    """Parallel tempering draws its noise as it goes: the number of temperatures may change during a warm-up."""

    generator: torch.Generator | None

    def __getitem__(self, step: int) -> "TemperedNoise":
        """The same for every transition of a block."""
        return self


@dataclass(frozen=True)
class ParallelTempering(Kernel):
    r"""Parallel tempering (Geyer, 1991; Syed et al., 2021) around any adjusted kernel.

    One step of the inner kernel moves the replicas of all chains at all temperatures together; then neighbours swap.
    What was cached moves with the replicas. During the warm-up of MCMC the ladder is spaced such that all neighbours
    are refused equally often, their number is set to twice the *communication barrier* Λ, the sum of their rates of
    refusal in the limit of many, and the inner kernel gets a step size and a diagonal mass at each temperature.

    Without a reference the whole energy is tempered, :math:`p^{1/T}`, which must have a finite integral at the highest
    temperature. A reference is a term near which the target is expected, such as a prior or a broad Gaussian: the hot
    end is then the reference itself, drawn afresh in each transition where it can be sampled, and where it is
    normalised ``draw.log_z`` is the target's evidence (bridge sampling between neighbours: Meng and Wong, 1996, with
    the geometric bridge; standard error by the jackknife over chains).

    Args:
        kernel: what moves the replicas at their temperatures.
        temperatures: increasing from 1, in units of the target's; β = 1/temperature, ``math.inf`` is the reference
            itself. An int has their number given and their spacing adapted; None has both adapted.
        reference: a term over the target's variables; None tempers the whole energy.
        hottest: the highest temperature where there is no reference and ``temperatures`` are not given.
        tuning: what a warm-up found, see :meth:`tuned`.

    Raises:
        TypeError: a kernel that is not adjusted, or a reference without energies.
        ValueError: temperatures that do not increase from 1.

    Example:
        Two modes thirty standard deviations apart, one of them with three quarters of the mass:

        >>> import torch, boltzmix as bm
        >>> p = bm.GaussianMixture([[-15.0], [15.0]], 1.0, [0.25, 0.75])
        >>> kernel = bm.ParallelTempering(bm.HMC(num_leapfrog=3), reference=bm.Gaussian(torch.zeros(1), 400.0))
        >>> draw = bm.sample(p, chains=8, sampler=bm.MCMC(kernel, warmup=200, draws=400), seed=0)
        >>> abs(float((draw.x > 0).double().mean()) - 0.75) < 0.05, abs(draw.log_z) < 0.1
        (True, True)
    """

    step_size: float | None = field(default=None, init=False, repr=False)
    inverse_mass: Mass | Tensor | None = field(default=None, init=False, repr=False)
    kernel: Kernel = field(default_factory=HMC)
    temperatures: int | Sequence[float] | None = None
    reference: Term | None = None
    hottest: float = 100.0
    tuning: TemperedTune | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        """Refuse ladders that are none, and kernels without energies."""
        super().__post_init__()
        inner = self.kernel
        if not isinstance(inner, Kernel):
            what = f"the class {inner.__name__}; write {inner.__name__}()" if isinstance(inner, type) else repr(inner)
            raise TypeError(f"ParallelTempering takes a kernel such as HMC(), got {what}")
        if not inner.adjusted:
            raise TypeError(
                f"ParallelTempering swaps by energies and {type(inner).__name__} is unadjusted, without them; "
                "use MALA, HMC or NUTS"
            )
        if isinstance(inner, ParallelTempering):
            raise TypeError("ParallelTempering around itself has no meaning: give it the inner kernel")
        if self.reference is not None:
            if not isinstance(self.reference, Term):
                raise TypeError(f"the reference is a term such as Gaussian, got {type(self.reference).__name__}")
            if not self.reference.has_energy:
                raise TypeError(f"the reference {self.reference.name()} has no energy; use a Gaussian")
        if isinstance(self.hottest, bool) or not isinstance(self.hottest, (int, float)) or not self.hottest > 1:
            raise ValueError(f"hottest is a temperature above 1, got {self.hottest!r}")
        if self.reference is None and not math.isfinite(self.hottest):
            raise ValueError("without a reference the hottest temperature is finite")
        object.__setattr__(self, "temperatures", self._checked(self.temperatures))

    def _checked(self, given: int | Sequence[float] | None) -> int | tuple[float, ...] | None:
        if given is None:
            return None
        if isinstance(given, int) and not isinstance(given, bool):
            if given < 2:
                raise ValueError(f"ParallelTempering needs 2 temperatures or more, got {given}")
            return given
        if not isinstance(given, (Sequence, Tensor)) or isinstance(given, str):
            raise TypeError(f"temperatures is None, their number, or a list that increases from 1, got {given!r}")
        found = tuple(float(t) for t in given)
        rising = all(a < b for a, b in itertools.pairwise(found))
        if len(found) < 2 or found[0] != 1.0 or not rising:
            raise ValueError(f"temperatures are a list of two or more that increases from 1, got {list(found)}")
        if self.reference is None and not math.isfinite(found[-1]):
            raise ValueError("a temperature of inf is the reference itself, and there is none: give reference=")
        return found

    def __repr__(self) -> str:
        """With a digest of the reference's and the tuning's numbers: kernels that differ have different names."""
        digest = hashlib.sha256()
        tensors = [] if self.reference is None else [*self.reference.state_dict().values()]
        if self.tuning is not None:
            tensors += [t for t in (self.tuning.betas, self.tuning.steps, self.tuning.variances) if t is not None]
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        named = "None" if self.reference is None else self.reference.name()
        numbers = f", {digest.hexdigest()[:8]}" if tensors else ""
        return (
            f"ParallelTempering({self.kernel!r}, temperatures={self.temperatures!r}, reference={named}, "
            f"hottest={self.hottest!r}{numbers})"
        )

    # ------------------------------------------------------------- the inner kernel's

    @property
    def uses_score(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner kernel."""
        return self.kernel.uses_score

    @property
    def moves(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner kernel."""
        return self.kernel.moves

    @property
    def target_acceptance(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner kernel."""
        return self.kernel.target_acceptance

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner kernel's, at each temperature of the ladder it starts with."""
        return self.kernel.evaluations_per_step * (len(self.betas(1)) - 1)

    @property
    def adapts(self) -> bool:
        """Whether the ladder, or something of the inner kernel, is left to adapt."""
        return self.tuning is None and (not isinstance(self.temperatures, tuple) or self.kernel.adapts)

    def adaptation(self) -> "Adaptation":
        """Ladder, step sizes and masses."""
        from boltzmix.compose.adaptation.temperatures import Temperatures

        return Temperatures()

    def initial_step_size(self, dim: int) -> float:
        """As the inner kernel."""
        return self.kernel.initial_step_size(dim)

    # ------------------------------------------------------------------------ tuning

    def betas(self, dim: int) -> Tensor:
        """The ladder to start with, increasing to 1, ``(T,)`` in float64."""
        if isinstance(self.temperatures, tuple):
            return torch.tensor([1.0 / t for t in reversed(self.temperatures)], dtype=torch.float64)
        if isinstance(self.temperatures, int):
            count = self.temperatures
        else:  # the barrier of a Gaussian in dim dimensions, doubled
            count = 10 if self.reference is not None else 2 + round(0.8 * math.sqrt(dim) * math.log(self.hottest))
            count = min(max(count, 4), 24)
        u = torch.arange(count, dtype=torch.float64) / (count - 1)
        return u**4 if self.reference is not None else self.hottest ** (u - 1.0)

    def tune(self, like: Tensor | None = None) -> TemperedTune:
        """The tuning that was found, or the inner kernel's own at every temperature.

        Where the whole energy is tempered and the inner kernel has no mass of its own, variances grow like the
        temperature, as those of a Gaussian do.

        Raises:
            ValueError: the inner kernel has no step size.
        """
        if self.tuning is not None:
            return self.tuning
        dim = 1 if like is None else like.shape[-1]
        betas = self.betas(dim)
        own = self.kernel.tune(like)
        steps = own.step_size.expand(len(betas)) if own.step_size.ndim == 0 else own.step_size.new_ones(len(betas))
        return self.ladder(betas.to(steps), steps, self.scales(betas.to(steps), dim))

    def scales(self, betas: Tensor, dim: int) -> Tensor | None:
        """Variances ``(T, D)`` to begin with; None leaves the inner kernel's mass."""
        if self.kernel.inverse_mass is not None or self.kernel.moves != "real":
            return None
        variances = torch.ones_like(betas) if self.reference is not None else 1.0 / betas
        return variances[:, None].expand(-1, dim).contiguous()

    def ladder(self, betas: Tensor, steps: Tensor, variances: Tensor | None) -> TemperedTune:
        """A tuning; ``step_size`` and the mass are those of the target."""
        mass = self.kernel.inverse_mass if variances is None else Diagonal(variances[-1])
        return TemperedTune(steps[..., -1], mass, betas=betas, steps=steps, variances=variances)

    def tuned(self, tune: Tune) -> Self:
        """The kernel with a ladder, step sizes and masses as its own; step sizes of several chains become their median.

        It adapts nothing more.
        """
        assert isinstance(tune, TemperedTune)
        assert tune.betas is not None
        assert tune.steps is not None
        steps = tune.steps.reshape(-1, tune.steps.shape[-1]).median(0).values
        temperatures = tuple(1.0 / b if b else math.inf for b in reversed(tune.betas.tolist()))
        return replace(self, temperatures=temperatures, tuning=self.ladder(tune.betas, steps, tune.variances))

    # ------------------------------------------------------------------------- steps

    def _ends(self, target: Target) -> Ends:
        """The target and the reference, which is drawn afresh only where it is what the hottest replica has."""
        ends = Ends(self.kernel, target, self.reference)
        if isinstance(self.temperatures, tuple) and math.isfinite(self.temperatures[-1]):
            ends.fresh = ends.normalized = False
        return ends

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> TemperedState:
        """All replicas of a chain at its start, that of a samplable reference at a draw.

        Raises:
            NonFinite: a start where target or reference has no finite energy or score.
        """
        ends = self._ends(target)
        start = self.kernel.init(target, x, generator)
        parts = Parts(start.energy[:, None], start.score[:, None])
        if ends.reference is not None:
            parts = ends.evaluate(x)
            finite = torch.isfinite(parts.energies).all(-1)
            if not bool(finite.all()):
                bad = int((~finite).nonzero()[0, 0])
                raise NonFinite(f"start {bad} is outside the support of the reference {ends.reference.name()}")
        betas = (self.tune(x).betas if self.tuning is not None else self.betas(x.shape[1])).to(x)  # pyright: ignore[reportOptionalMemberAccess]
        n, t = len(x), len(betas)
        replicas = x[:, None].expand(n, t, -1).contiguous()
        energies = parts.energies[:, None].expand(n, t, -1).contiguous()
        scores = parts.scores[:, None].expand(n, t, -1, -1).contiguous()
        first = int(ends.fresh)
        if first:
            drawn = ends.draw(n, x, generator)
            found = ends.evaluate(drawn)
            replicas = torch.cat([drawn[:, None], replicas[:, 1:]], 1)
            energies = torch.cat([found.energies[:, None], energies[:, 1:]], 1)
            scores = torch.cat([found.scores[:, None], scores[:, 1:]], 1)
        energy, score = Parts(energies, scores).at(weights_of(betas, ends.count))
        rows = State(replicas[:, first:].flatten(0, 1), energy[:, first:].flatten(), score[:, first:].flatten(0, 1))
        inner = self.kernel.attach(rows, generator)
        carried = {k: v.unflatten(0, (n, t - first)) for k, v in inner.tensors().items() if k not in _BASE}
        return TemperedState(
            x, start.energy, start.score, replicas, energies, scores,
            visited=torch.zeros(n, t, dtype=torch.bool, device=x.device),
            parity=torch.zeros(n, dtype=torch.long, device=x.device), carried=carried, kind=type(inner),
        )  # fmt: skip

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> Any:
        """The generator, from which a step draws what it needs."""
        return TemperedNoise(generator)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[TemperedState, TemperedInfo]:
        """One step of the inner kernel at all temperatures, then swaps of every other pair of neighbours."""
        if not isinstance(state, TemperedState) or not isinstance(tune, TemperedTune) or tune.betas is None:
            raise TypeError(
                "ParallelTempering steps from its own states and tunings: init(target, x) gives the one, "
                "tune(x) or the adaptation Temperatures() the other"
            )
        generator = noise.generator
        ends = self._ends(target)
        n, t, d = state.replicas.shape
        first, betas = int(ends.fresh), tune.betas.to(state.replicas)
        replicas, parts, inner = self._moved(ends, state, tune, betas, first, generator)
        moved, info = inner
        if first:
            drawn = ends.draw(n, state.x, generator)
            found = ends.evaluate(drawn)
            replicas = torch.cat([drawn[:, None], replicas], 1)
            parts = Parts(
                torch.cat([found.energies[:, None], parts.energies], 1),
                torch.cat([found.scores[:, None], parts.scores], 1),
            )
        uniform = torch.rand(n, t - 1, generator=generator, dtype=state.x.dtype, device=state.x.device)
        chances = swap_chances(betas, parts, self.uses_score and self.moves == "real")
        order = swap_order(chances, uniform, state.parity)
        visited = torch.cat([torch.ones_like(state.visited[:, :1]), state.visited[:, 1:]], 1).gather(1, order)
        trips = visited[:, -1]
        replicas = replicas.gather(1, order[..., None].expand(-1, -1, d))
        energies = parts.energies.gather(1, order[..., None].expand(-1, -1, ends.count))
        scores = parts.scores.gather(1, order[..., None, None].expand(-1, -1, *parts.scores.shape[2:]))
        carried = {k: v.unflatten(0, (n, t - first)) for k, v in moved.tensors().items() if k not in _BASE}
        after = TemperedState(
            replicas[:, -1], energies[:, -1, 0], scores[:, -1, 0], replicas, energies, scores,
            visited=torch.cat([visited[:, :-1], torch.zeros_like(visited[:, -1:])], 1), parity=1 - state.parity,
            carried=carried, kind=type(moved),
        )  # fmt: skip
        return after, _report(info, moved, after, chances, trips, first, n)

    def _moved(
        self,
        ends: Ends,
        state: TemperedState,
        tune: TemperedTune,
        betas: Tensor,
        first: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Parts, tuple[State, Info]]:
        """Positions, parts and state of the temperatures from ``first`` on, after a step of the inner kernel."""
        n, t, _ = state.replicas.shape
        weights = weights_of(betas[first:], ends.count).repeat(n, 1)
        x = state.replicas[:, first:].flatten(0, 1)
        before = Parts(state.energies[:, first:].flatten(0, 1), state.scores[:, first:].flatten(0, 1))
        target = TemperedTarget(ends, weights)
        carried = {name: value.flatten(0, 1) for name, value in state.carried.items()}
        energy, score = before.at(weights)
        rows = state.kind(x, energy, score, **carried)
        own = self.kernel.inverse_mass
        assert own is None or isinstance(own, Mass)
        moved, info = self.kernel.step(
            target, rows, tune.inner(n, first, own), self.kernel.noise(rows, generator)
        )  # fmt: skip
        parts = target.parts_of(moved.x, x, before)
        shape = (n, t - first)
        parts = Parts(parts.energies.unflatten(0, shape), parts.scores.unflatten(0, shape))
        return moved.x.unflatten(0, shape), parts, (moved, info)

    def recorder(self, target: Target, state: State, transitions: int) -> LadderRecord:
        """Swaps, round trips and, from a normalised reference, the evidence."""
        assert isinstance(state, TemperedState)
        return LadderRecord(self._ends(target).normalized, len(state.x), transitions)


def swap_chances(betas: Tensor, parts: Parts, scored: bool) -> Tensor:
    """Acceptance probability of a swap of each pair of neighbours, ``(N, T − 1)``.

    A hot replica where the target has no finite energy or score stays where it is.
    """
    slope = parts.slope
    ratio = (betas[1:] - betas[:-1]) * (slope[:, 1:] - slope[:, :-1])
    usable = torch.isfinite(parts.energies).all(-1)
    if scored:
        usable = usable & torch.isfinite(parts.scores).flatten(2).all(-1)
    usable = usable[:, 1:] & usable[:, :-1]
    return torch.where(usable, torch.nan_to_num(ratio, nan=-torch.inf).clamp(max=0.0).exp(), 0.0)


def swap_order(chances: Tensor, uniform: Tensor, parity: Tensor) -> Tensor:
    """Where the replica of each temperature comes from, ``(N, T)``: pairs i, i + 1 with i ≡ parity (mod 2) swap."""
    pairs = torch.arange(chances.shape[1], device=chances.device)
    swapped = (pairs % 2 == parity[:, None]) & (uniform < chances)
    none = torch.zeros_like(swapped[:, :1])
    up, down = torch.cat([swapped, none], 1), torch.cat([none, swapped], 1)
    return torch.arange(chances.shape[1] + 1, device=chances.device) + up.long() - down.long()


def _report(
    info: Info, moved: State, after: TemperedState, chances: Tensor, trips: Tensor, first: int, n: int
) -> TemperedInfo:
    """What a step says of the replica at the target, and of all."""
    rates = info.acceptance.reshape(n, -1)
    if first:
        rates = torch.cat([torch.full_like(rates[:, :1], torch.nan), rates], 1)

    def last(values: Tensor) -> Tensor:
        return values.reshape(n, -1)[:, -1]

    energy = None
    if info.energy is not None and not after.carried:  # the kinetic energy stays, the potential is that of who came
        energy = after.energy + last(info.energy - moved.energy)
    count = None if info.num_leapfrog is None else info.num_leapfrog.reshape(n, -1).sum(1)
    return TemperedInfo(
        last(info.acceptance), last(info.accepted), last(info.divergent), energy, count, rates, chances, trips
    )
