"""Whether transitions are compiled: what was asked for, and whether it pays."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled import tuning
from boltzmix.compose.compiled.block import Block, Trace, compile_kernel
from boltzmix.compose.errors import CompileError, SamplingWarning
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune

#: compiling takes a second or two, and an eager evaluation of a small target about 100 µs
_FEWEST = 2**14
#: rows × dimensions whose arithmetic takes as long as calling torch does
_NUMBERS = 2**13
#: larger networks spend their time in matrix products, which compiling does not make faster
_PARAMETERS = 2**16
_EACH = 16  # evaluations of a transition, where a kernel can only say how many it takes at most

#: the fields of infos that chains are told of
REPORTED = ("acceptance", "accepted", "divergent", "energy", "num_leapfrog")


def check_setting(value: object, owner: str) -> None:
    """``compile=`` is ``"auto"``, True or False."""
    if value is not True and value is not False and value != "auto":
        raise ValueError(f'{owner}\'s compile is "auto", True or False, got {value!r}')


def reason_against(setting: bool | str, evaluations: int, target: Any, x: Tensor) -> str | None:
    """Why not to compile, None where nothing speaks against it.

    ``"auto"`` compiles runs whose eager calls take longer than a compiler does, judged by counts, so that a run is the
    same on every machine; the environment variable ``BOLTZMIX_COMPILE=0`` turns it off.
    """
    if setting is not True:
        if setting is False:
            return "compile=False"
        if os.environ.get("BOLTZMIX_COMPILE") == "0":
            return "BOLTZMIX_COMPILE=0"
        if x.device.type != "cpu":
            return "on a GPU, compile=True compiles"
        if evaluations * (1 + x.numel() // _NUMBERS) < _FEWEST:
            return "the run is short"
        view = getattr(target, "view", None)
        if view is not None and sum(p.numel() for p in view.term.parameters()) > _PARAMETERS:
            return "a large network, which compile=True compiles"
    return None


class Transitions:
    """A kernel's transitions on a target: compiled where that is wanted and works, and eager otherwise.

    Attributes:
        reason: why the last transitions were eager; None where they were compiled.
        backend: what compiled them.
        decided: whether all are eager, without a try.
    """

    def __init__(self, kernel: Kernel, target: Target, setting: bool | str, transitions: int, x: Tensor) -> None:
        """Decide; ``transitions`` is how many there will be."""
        self.kernel, self.target, self.setting = kernel, target, setting
        evaluations = transitions * min(kernel.evaluations_per_step, _EACH)
        self.reason = reason_against(setting, evaluations, target, x)
        self.decided = self.reason is not None
        self.backend = "eager"
        self._blocks: dict[tuple[object, ...], Block | None] = {}
        self._any: Block | None = None  # which takes tunings of any structure

    def noise(self, state: State, tune: Tune, generator: torch.Generator | None, steps: int) -> Noise:
        """The noise of a block: the kernel's, which compiled code draws faster and rounds otherwise."""
        block = self._block(state, tune)
        return (self.kernel if block is None else block).noise(state, generator, steps)

    def step(self, state: State, tune: Tune, noise: Noise, k: int) -> tuple[State, Info]:
        """One transition with the ``k``-th noise of a block, and everything that its info holds."""
        block = self._block(state, tune)
        if block is None:
            return self.kernel.step(self.target, state, tune, noise[k])
        state, trace = block(state, tune, noise[k : k + 1])
        return state, trace.last()

    def several(
        self, state: State, tune: Tune, noise: Noise, steps: int, each: Callable[[State, Info], None] | None = None
    ) -> tuple[State, Trace]:
        """A block of transitions.

        Args:
            state: where chains stand.
            tune: of all of them.
            noise: of the block.
            steps: its length.
            each: called with the state and the info after every transition; keeps transitions eager.
        """
        block = None if each is not None else self._block(state, tune)
        if block is not None:
            return block(state, tune, noise, REPORTED)
        states: dict[str, list[Tensor]] = {"x": [], "energy": []}
        infos: dict[str, list[Tensor]] = {}
        for k in range(steps):
            state, info = self.kernel.step(self.target, state, tune, noise[k])
            if each is not None:
                each(state, info)
            for name, column in states.items():
                column.append(getattr(state, name))
            for name in REPORTED:
                value = getattr(info, name)
                if value is not None:
                    infos.setdefault(name, []).append(value)
        stacked = {name: torch.stack(column) for name, column in states.items()}
        return state, Trace(stacked, Info, {name: torch.stack(column) for name, column in infos.items()})

    def _block(self, state: State, tune: Tune) -> Block | None:
        """Compiled code for a tuning of this structure; None where transitions are eager."""
        if self.decided:
            return None
        if self._any is not None:
            return self._any
        key: tuple[object, ...] = ()
        try:
            key = tuning.structure(tune)
            if key not in self._blocks:
                backend = "auto" if self.setting is True else "native"
                self._blocks[key] = block = compile_kernel(self.kernel, self.target, state, tune, backend)
                self.backend, self.reason = block.backend, None
                self._any = block if block.structure is None else None
        except CompileError as error:
            if self.setting is True and self.reason is None:
                warnings.warn(f"transitions are not compiled: {error}", SamplingWarning, stacklevel=2)
            self._blocks[key], self.backend, self.reason = None, "eager", str(error)
        return self._blocks[key]

    def report(self) -> dict[str, Any]:
        """For ``info.extra["compile"]``: the backend, the seconds that compiling took, and why it is eager if it is."""
        seconds = sum(block.seconds for block in self._blocks.values() if block is not None)
        found: dict[str, Any] = {"backend": self.backend, "seconds": float(seconds)}
        return found if self.reason is None else {**found, "reason": self.reason}
