"""What compiled transitions look like from outside, and which compiler makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.compiled import tuning
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Info, Kernel, Noise, State, Target, Tune

BACKENDS = ("auto", "native", "inductor")


@dataclass(frozen=True)
class Trace:
    """What a block of transitions leaves behind.

    Attributes:
        states: of the state after each transition, ``x`` ``(steps, N, D)`` and ``energy`` ``(steps, N)``.
        kind: the class of the infos.
        reported: their tensors by name, ``(steps, N)``.
    """

    states: dict[str, Tensor]
    kind: type[Info]
    reported: dict[str, Tensor]

    @property
    def x(self) -> Tensor:
        """Positions ``(steps, N, D)``."""
        return self.states["x"]

    @property
    def info(self) -> Info:
        """The infos of all transitions in one, with a leading dimension ``steps``."""
        return self.kind(**self.reported)

    def last(self) -> Info:
        """The info of the last transition."""
        return self.kind(**{name: tensor[-1] for name, tensor in self.reported.items()})


class Block:
    """Compiled transitions of one kernel on one target; made by :func:`compile_kernel`.

    Attributes:
        backend: what compiled it, ``"native"`` or ``"inductor"``.
        seconds: that compiling took.
    """

    backend: str
    seconds: float
    kernel: Kernel
    target: Target
    like: State
    structure: tuple[object, ...] | None

    def __call__(
        self, state: State, tune: Tune, noise: Noise, reported: Sequence[str] | None = None
    ) -> tuple[State, Trace]:
        """Transitions of every chain, one for each of the noise's.

        Args:
            state: where chains stand, of the shapes that the block was compiled for.
            tune: likewise.
            noise: of :meth:`noise`.
            reported: the fields of the info that are wanted; None for all.
        """
        raise NotImplementedError

    def noise(self, state: State, generator: torch.Generator | None, steps: int) -> Noise:
        """``kernel.noise(state, generator, steps)``: the same numbers up to rounding, drawn faster where that is known.

        Args:
            state: where chains stand.
            generator: torch's; None is its default one.
            steps: transitions.
        """
        return self.kernel.noise(state, generator, steps)

    def check(self, state: State, tune: Tune) -> None:
        """Refuse what the code was not compiled for."""
        old, new = self.like.x, state.x
        if (old.shape[1], old.dtype, old.device) != (new.shape[1], new.dtype, new.device):
            raise ValueError(
                f"the block was compiled for states (N, {old.shape[1]}) of {old.dtype} on {old.device}, got "
                f"{tuple(new.shape)} of {new.dtype} on {new.device}"
            )
        if self.structure is not None and tuning.structure(tune) != self.structure:
            raise ValueError("the block was compiled for a tuning of another structure (mass, sizes per chain)")

    def count(self, evaluations: int) -> None:
        """Note the evaluations on the target's counter."""
        target: Any = self.target
        counting: Any = target if hasattr(target, "count") else getattr(target, "view", None)
        if counting is not None:
            counting.count(evaluations)


def compile_kernel(
    kernel: Kernel, target: Target, state: State, tune: Tune | None = None, backend: str = "auto"
) -> Block:
    """Compile a kernel's transitions on a target.

    The code of both is traced once and compiled: ``"native"`` generates C++ for a vector of chains, and takes targets
    made of elementwise operations, reductions and matrix products whose rows do not touch; ``"inductor"`` hands a scan
    over transitions to torch's compiler, and takes any that torch can trace, on the CPU or a GPU. ``"auto"`` is native
    where that works, and inductor otherwise. NUTS is native only.

    Args:
        kernel: with a step that is a fixed sequence of operations, or :class:`~boltzmix.compose.kernels.nuts.NUTS`.
        target: of :func:`~boltzmix.compose.flat.ravel`.
        state: ``kernel.init(target, x)``; blocks are for this number of dimensions and this dtype.
        tune: the tuning, whose structure matters and not its numbers; None is the kernel's own.
        backend: ``"auto"``, ``"native"`` or ``"inductor"``.

    Raises:
        CompileError: what stands in the way.

    Example:
        >>> import torch
        >>> from boltzmix.compose import HMC, Gaussian, ravel
        >>> kernel, target = HMC(step_size=0.5), ravel(Gaussian(torch.zeros(3), 1.0))
        >>> state = kernel.init(target, torch.zeros(4, 3))
        >>> block = compile_kernel(kernel, target, state)
        >>> state, trace = block(state, kernel.tune(state.x), block.noise(state, None, 100))
        >>> tuple(trace.x.shape)
        (100, 4, 3)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    tune = kernel.tune(state.x) if tune is None else tune
    if state.x.requires_grad:
        raise CompileError("compiled transitions have no gradient")
    refused = []
    for name, make in _compilers(kernel):
        if backend not in ("auto", name):
            continue
        try:
            return make(kernel, target, state, tune)
        except CompileError as error:
            refused.append(f"{name}: {error}")
    raise CompileError("; ".join(refused) or f"{type(kernel).__name__} has no {backend} code")


def _compilers(kernel: Kernel) -> list[tuple[str, Callable[..., Block]]]:
    """The compilers that a kernel has, the one to try first in front."""
    from boltzmix.compose.compiled.nuts import NutsBlock
    from boltzmix.compose.compiled.scan import ScanBlock
    from boltzmix.compose.compiled.transitions import NativeBlock
    from boltzmix.compose.kernels.nuts import NUTS

    if isinstance(kernel, NUTS):
        return [("native", NutsBlock)]
    return [("native", NativeBlock), ("inductor", ScanBlock)]
