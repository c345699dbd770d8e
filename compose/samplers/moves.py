"""Kernel steps and evaluations on the densities of a path: eager, or compiled once for all of its levels.

Compiled code takes the level, σ or λ, as a number that it reads when it is called, so that one library serves a whole
run. On a geometric path it gives the energies and scores of both ends beside those of the level, and the next level
costs nothing. The end of a path, where there is no level, runs eagerly unless there is much to do.

Adaptive levels are as many as they turn out to be. With ``compile="auto"`` a run begins eagerly and is compiled once it
has done about as much as compiling takes: at worst it takes twice the time that would have been best. Work is counted,
not timed, so that a run is the same on every machine: calls of torch, and numbers that they write.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled.block import Block, compile_kernel
from boltzmix.compose.compiled.native import evaluate_rows, main_call, uncounted
from boltzmix.compose.compiled.policy import reason_against
from boltzmix.compose.compiled.rows import trace
from boltzmix.compose.compiled.transitions import NativeBlock, noise_tensors
from boltzmix.compose.errors import CompileError, SamplingWarning
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune
from boltzmix.compose.kernels.nuts import NUTS
from boltzmix.compose.samplers.path import Parts, Path, Point, TemperedTarget

#: the work of one or two seconds, in numbers that torch writes
_WORK = 2**30
#: numbers that torch writes in the time of calling it
_CALL = 2**12
#: evaluations before anything is counted
_FIRST = 16
_REPORTED = ("acceptance", "accepted", "divergent")


class LevelTarget:
    """A path's density at a level that is an input of compiled code.

    Attributes:
        level: σ or λ, a tensor () whose number may be changed.
        parts: how many numbers there are beside energy and score.
    """

    def __init__(self, path: Path, level: Tensor | None) -> None:
        """Bind a path to a level; None is its end."""
        self.path, self.level, self.view = path, level, path.view
        self.target = path.target_at(level)
        self.has_energy, self.dim = path.has_energy, path.view.dim
        self.inputs = () if level is None else (level,)
        self.parts = 2 + 2 * self.dim if isinstance(self.target, TemperedTarget) else 0

    def having(self, tensors: Any) -> "LevelTarget":
        """The target at another level."""
        return LevelTarget(self.path, *tensors)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)`` and scores ``(N, D)``."""
        return self.target.energy_and_score(x)

    def score(self, x: Tensor) -> Tensor:
        """Scores ``(N, D)``."""
        return self.target.score(x)

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(N,)``."""
        return self.target.energy_and_score(x)[0] if self.parts else self.target.energy(x)

    def energy_score_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, scores, and those of both ends in one tensor ``(N, 2 + 2 D)``."""
        energy, score = self.target.energy_and_score(x)
        return energy, score, flat(self.target.last)

    @property
    def last(self) -> Tensor:
        """The parts of the last evaluation."""
        return flat(self.target.last)

    def count(self, rows: int) -> None:
        """Record ``rows`` evaluations."""
        (self.target if self.parts else self.view).count(rows)


def flat(parts: Parts) -> Tensor:
    """The energies and scores of both ends in one tensor ``(N, 2 + 2 D)``."""
    base_energy, base_score, energy, score = parts
    return torch.cat([base_energy[:, None], energy[:, None], base_score, score], 1)


def unflat(parts: Tensor) -> Parts:
    """And apart again."""
    base_energy, energy, slopes = parts[:, 0], parts[:, 1], parts[:, 2:]
    base_score, score = slopes.chunk(2, 1)
    return base_energy, base_score, energy, score


@dataclass(frozen=True)
class CarryingState(State):
    """A kernel's state with the parts of where it stands ``(N, P)``."""

    inner: State
    parts: Tensor

    @staticmethod
    def of(inner: State, parts: Tensor) -> "CarryingState":
        """Put them together."""
        return CarryingState(inner.x, inner.energy, inner.score, inner, parts)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the kernel's state, and the parts."""
        return {**self.inner.tensors(), "parts": self.parts}

    def having(self, tensors: dict[str, Tensor]) -> "CarryingState":
        """A state with these in the place of its own."""
        inner = self.inner.having({name: t for name, t in tensors.items() if name != "parts"})
        return CarryingState.of(inner, tensors.get("parts", self.parts))


@dataclass(frozen=True)
class Carrying(Kernel):
    """A kernel that takes the parts of a proposal with it when it is accepted."""

    kernel: Kernel | None = None

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One transition; the last evaluation of a step is at its proposal."""
        assert isinstance(state, CarryingState)
        assert self.kernel is not None
        after, info = self.kernel.step(target, state.inner, tune, noise)
        last: Tensor = target.last  # pyright: ignore[reportAttributeAccessIssue]
        return CarryingState.of(after, torch.where(info.accepted[:, None], last, state.parts)), info

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> Noise:
        """That of the kernel."""
        assert self.kernel is not None
        return self.kernel.noise(state.inner if isinstance(state, CarryingState) else state, generator, steps)


class Moves:
    """Steps and evaluations on a path, compiled where that is wanted, works and pays.

    Attributes:
        reason: why they are eager; None where levels are compiled.
        seconds: that compiling has taken.
        backend: what compiled them.
    """

    def __init__(self, path: Path, kernel: Kernel, setting: bool | str, levels: int | None = None) -> None:
        """Decide what is known now.

        Args:
            path: of the run.
            kernel: that moves its particles.
            setting: ``"auto"``, True or False.
            levels: how many evaluations of all particles there will be, where that is known.
        """
        self.path, self.kernel, self.setting, self.expected = path, kernel, setting, levels
        self.refused = False
        self.reason: str | None = "the run is short"
        self.seconds, self.backend = 0.0, "eager"
        self._work = self._each = 0
        self._evaluations = 0
        self._level: LevelTarget | None = None
        self._block: Block | None = None

    # ------------------------------------------------------------- what a run does

    def step(self, u: float, before: Point, state: State, tune: Tune, noise: Noise) -> tuple[Point, Info]:
        """One transition at u; ``state`` is ``before`` as the kernel takes it."""
        block = self._at(u, before, state, tune)
        self._did(len(before.x), self.kernel.evaluations_per_step)
        if block is None:
            target = self.path.target(u)
            after, info = self.kernel.step(target, state, tune, noise)
            return self.path.after(target, before, after.x, after.energy, after.score), info
        if before.parts is not None:
            state = CarryingState.of(state, flat(before.parts))
        one = replace(noise, **{name: t[None] for name, t in noise_tensors(noise).items()})
        after, found = block(state, tune, one, _REPORTED)
        parts = unflat(after.parts) if isinstance(after, CarryingState) else None
        return Point(after.x, after.energy, after.score, parts), found.last()

    def evaluate(self, x: Tensor, u: float) -> Point:
        """Energies and scores at u."""
        self._did(len(x), 1)
        block, number = self._block, self.path.number(u)
        if not isinstance(block, NativeBlock) or number is None or self._level is None:
            return self.path.evaluate(x, u)
        self._set(number)
        energy, score, parts = evaluate_rows(block.library, block.constants, self._level, x)
        self._level.count(len(x))
        return Point(x, energy, score, None if parts is None else unflat(parts))

    def shift(self, point: Point, u: float) -> Point:
        """The same points at another u."""
        return self.path.shift(point, u) if point.parts is not None else self.evaluate(point.x, u)

    def report(self) -> dict[str, Any]:
        """For ``info.extra["compile"]``: the backend, the seconds that compiling took, and why it is eager if it is."""
        found: dict[str, Any] = {"backend": self.backend, "seconds": self.seconds}
        return found if self.reason is None else {**found, "reason": self.reason}

    # ------------------------------------------------------------------- compiling

    def _did(self, rows: int, evaluations: int) -> None:
        """Note work that was done."""
        self._evaluations += evaluations
        self._work += evaluations * (self._calls * _CALL + rows * self._each)

    _calls = 0

    def _at(self, u: float, before: Point, state: State, tune: Tune) -> Block | None:
        """Compiled steps at a level, and their level set; None where steps are eager."""
        number = self.path.number(u)
        if number is None or self.refused or not before.x.numel():
            return None
        if self._block is None and not self._wanted(number, before.x):
            return None
        try:
            if self._block is None:
                self._compile(number, before, state, tune)
            block = self._block
            assert block is not None
            block.check(state, tune)
            self._set(number)
            return block
        except CompileError as error:
            self._refuse(str(error))
            if self.setting is True:
                warnings.warn(f"moves are not compiled: {error}", SamplingWarning, stacklevel=6)
            return None

    def _refuse(self, reason: str) -> None:
        self.refused, self.reason = True, reason

    def _wanted(self, number: float, x: Tensor) -> bool:
        """Whether to compile now."""
        if self.setting is True:
            return True
        against = reason_against(self.setting, 2**62, self.path, x)
        if against is not None:
            self._refuse(against)
            return False
        if self._evaluations < _FIRST:
            return False
        if not self._each and not self._measure(number, x):
            return False
        coming = 0 if self.expected is None else self.expected - self._evaluations
        return max(self._work, coming * (self._calls * _CALL + len(x) * self._each) // 2) >= _WORK

    def _measure(self, number: float, x: Tensor) -> bool:
        """Count the calls and numbers of one evaluation of one row."""
        level = LevelTarget(self.path, torch.tensor(number, dtype=x.dtype, device=x.device))
        try:
            with uncounted(level):  # pyright: ignore[reportArgumentType]
                evaluate = getattr(level, main_call(level))
                graph = trace(lambda row: evaluate(row), [x[:1]], "the target")  # a method cannot be traced
        except CompileError as error:
            self._refuse(str(error))
            return False
        values = [n.meta.get("val") for n in graph.graph.nodes if n.op == "call_function"]
        sizes = [v.numel() for v in values if isinstance(v, Tensor)]
        self._calls, self._each = len(sizes), max(1, sum(sizes))
        self._work = self._evaluations * (self._calls * _CALL + len(x) * self._each)
        return True

    def _compile(self, number: float, before: Point, state: State, tune: Tune) -> None:
        self._level = level = LevelTarget(self.path, torch.tensor(number, dtype=before.x.dtype, device=before.x.device))
        kernel = self.kernel
        if isinstance(kernel, NUTS):
            raise CompileError("moves by NUTS are eager: its trajectories end where their numbers say")
        if before.parts is not None:
            state, kernel = CarryingState.of(state, flat(before.parts)), Carrying(kernel=kernel)
        target: Any = level
        self._block = compile_kernel(kernel, target, state, tune, "auto" if self.setting is True else "native")
        self.seconds += self._block.seconds
        self.backend, self.reason = self._block.backend, None

    def _set(self, number: float) -> None:
        assert self._level is not None
        assert self._level.level is not None
        self._level.level.fill_(number)
