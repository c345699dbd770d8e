"""Adaptation of kernels that consist of kernels: each block by itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation, Tuner, joined, part
from boltzmix.compose.kernels.base import Info, Kernel, State, Target
from boltzmix.compose.kernels.blocks import BlockGibbs, BlockInfo, BlockState, Names, joint_tune


@dataclass(frozen=True)
class BlockAdaptation(Adaptation):
    """Adapts the blocks of a :class:`~boltzmix.compose.kernels.blocks.BlockGibbs` that leave something open.

    Args:
        parts: by the names of blocks, adaptations other than the kernel's own:
            ``{"x": Windows(mass="dense")}``.

    Raises:
        TypeError: a kernel without blocks.
        ValueError: a name that is no block.
    """

    parts: Mapping[Names, Adaptation] = field(default_factory=dict)

    def begin(
        self, kernel: Kernel, target: Target, state: State, warmup: int, generator: torch.Generator | None
    ) -> "BlockTuner":
        """A tuner for ``warmup`` transitions from ``state``."""
        if not isinstance(kernel, BlockGibbs) or not isinstance(state, BlockState):
            raise TypeError(f"BlockAdaptation is for BlockGibbs, got {type(kernel).__name__}")
        unknown = [names for names in self.parts if names not in kernel.kernels]
        if unknown:
            raise ValueError(f"BlockAdaptation names {unknown} and the blocks are {list(kernel.kernels)}")
        tuners: list[Tuner | None] = []
        rows = zip(kernel.kernels.items(), kernel.conditionals(target, state.x), state.parts, strict=True)
        for (names, own), there, where in rows:
            how = self.parts.get(names) or own.adaptation()
            tuners.append(how.begin(own, there, where, warmup, generator) if own.adapts else None)
        return BlockTuner(kernel, tuners, state.x)


class BlockTuner(Tuner):
    """A tuner for each block, None where nothing is adapted."""

    def __init__(self, kernel: BlockGibbs, tuners: list[Tuner | None], like: Tensor) -> None:
        """Hold the tuners."""
        self.tuners = tuners
        pairs = zip(kernel.kernels.values(), tuners, strict=True)
        self._fixed = [own.tune(like) if tuner is None else None for own, tuner in pairs]
        self._retune()

    def _retune(self) -> None:
        pairs = zip(self._fixed, self.tuners, strict=True)
        self.tune = joint_tune(tuple(fixed if tuner is None else tuner.tune for fixed, tuner in pairs))  # pyright: ignore[reportArgumentType]

    def update(self, before: State, state: State, info: Info) -> None:
        """Learn from a transition of the warm-up."""
        assert isinstance(before, BlockState)
        assert isinstance(state, BlockState)
        assert isinstance(info, BlockInfo)
        for tuner, earlier, later, report in zip(self.tuners, before.parts, state.parts, info.parts, strict=True):
            if tuner is not None:
                tuner.update(earlier, later, report)
        self._retune()

    def finish(self) -> Any:
        """The tuning to keep."""
        pairs = zip(self._fixed, self.tuners, strict=True)
        self.tune = joint_tune(tuple(fixed if tuner is None else tuner.finish() for fixed, tuner in pairs))  # pyright: ignore[reportArgumentType]
        return self.tune

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which :meth:`restore` goes on."""
        tensors: dict[str, Tensor] = {}
        states: dict[str, Any] = {}
        for b, tuner in enumerate(self.tuners):
            if tuner is not None:
                own, states[str(b)] = tuner.snapshot()
                tensors |= joined(**{str(b): own})
        return tensors, states

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up a snapshot."""
        for b, tuner in enumerate(self.tuners):
            if tuner is not None:
                tuner.restore(part(tensors, f"{b}/"), state[str(b)])
        self._retune()
