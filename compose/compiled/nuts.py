"""The No-U-Turn sampler in C++: every lane of a vector runs a chain of its own, at a leaf of its own.

Trajectories of different lengths cost nothing extra: a chain whose trajectory has ended begins the next at once, where
a batch in step waits for the longest. The algorithm is that of :class:`~boltzmix.compose.kernels.nuts.NUTS`, with the
same weights, turns and limits; only random numbers are drawn otherwise, from a generator of each chain (xoshiro256++)
that is seeded from the noise's once for a block. Given the same numbers, both make the same transitions.

One library serves all masses and step sizes.
"""

import ctypes
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from boltzmix.compose.compiled.block import Block, Trace
from boltzmix.compose.compiled.native import check_source, lanes_for, pointers, source
from boltzmix.compose.compiled.normals import noise_of
from boltzmix.compose.compiled.toolchain import HERE, load
from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Info, Noise, State, Target, Tune
from boltzmix.compose.kernels.mass import Diagonal, LowRank, Mass
from boltzmix.compose.kernels.nuts import NUTS

_PLAIN, _DIAGONAL, _SEPARATE, _MATRIX, _LOW_RANK = range(5)
_DEEPEST = 40  # doublings; more would not end
_SEEDS = 2**63 - 1

_INPUTS = ("normals", "step_size", "scale", "basis", "stretch", "seeds", "uniforms")
_OUTPUTS = ("x", "energy", "acceptance", "hamiltonian", "accepted", "divergent", "num_leapfrog")


class _Job(ctypes.Structure):
    """``nuts::Job``."""

    _fields_ = (  # pyright: ignore[reportAssignmentType]
        *((name, ctypes.c_int64) for name in ("chains", "steps", "max_depth", "kind", "rank")),
        ("max_energy_error", ctypes.c_double),
        *((f"{name}_now", ctypes.c_void_p) for name in ("x", "energy", "score")),
        *((name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS)),
    )


class NutsBlock(Block):
    """Transitions of :class:`~boltzmix.compose.kernels.nuts.NUTS` on one target."""

    backend = "native"

    def __init__(self, kernel: NUTS, target: Target, state: State, tune: Tune) -> None:
        """Trace the target, write, build and check.

        Raises:
            CompileError: with what stands in the way.
        """
        clock = time.perf_counter()
        if not target.has_energy:
            raise CompileError("NUTS needs energies")
        self.kernel, self.target, self.like = kernel, target, state
        self.structure = None  # any mass and any step sizes will do
        made = source(target, state.x, lanes_for(len(state.x), state.x.dtype))
        self.constants, self.library = made.constants, load(made.text + ENTRY + algorithm())
        check_source(self.library, made, target, state.x)
        self.seconds = time.perf_counter() - clock

    def noise(self, state: State, generator: torch.Generator | None, steps: int) -> Noise:
        """That of the kernel, drawn by compiled code."""
        return noise_of(self.kernel, state, generator, steps)

    def __call__(
        self, state: State, tune: Tune, noise: Noise, reported: Sequence[str] | None = None
    ) -> tuple[State, Trace]:
        """Transitions of every chain, one for each of the noise's."""
        self.check(state, tune)
        seeds = torch.randint(_SEEDS, (len(state.x),), generator=noise.generator)
        assert isinstance(self.kernel, NUTS)
        after, trace = run(self.library, self.kernel, state, tune, noise.normal, seeds, constants=self.constants)
        self.count(int(trace.reported["num_leapfrog"].sum()))
        if reported is not None:
            trace = Trace(trace.states, trace.kind, {name: trace.reported[name] for name in reported})
        return after, trace


#: what the sampler calls, of the functions of a target
ENTRY = """
static void evaluate(const V* x, V* energy, V* score) { energy_and_score(x, energy, score); }
#define GIVEN constants
"""


def algorithm() -> str:
    """The C++ of the sampler, to follow that of a target's ``evaluate``."""
    return (HERE / "nuts.h").read_text(encoding="utf-8")


def run(
    library: ctypes.CDLL,
    kernel: NUTS,
    state: State,
    tune: Tune,
    normals: Tensor,
    seeds: Tensor,
    uniforms: Tensor | None = None,
    constants: Sequence[Tensor] = (),
) -> tuple[State, Trace]:
    """Transitions of every chain.

    Args:
        library: made of a target's source and :func:`algorithm`.
        kernel: its limits.
        state: where chains stand.
        tune: step sizes and mass.
        normals: velocities that transitions begin with, ``(steps, N, D)``.
        seeds: of the chains' generators, ``(N,)``.
        uniforms: numbers in [0, 1) that are taken in their place, ``(steps, 2 K + 2^K - 1, N)`` with K the largest
            depth: for each doubling one for its direction, one for the choice between the halves, and one for each
            leaf of the new half.
        constants: arrays that the target reads.

    Raises:
        ValueError: shapes that do not fit.
        MemoryError: there is no room for the trajectories.
    """
    x = state.x
    (n, d), steps = x.shape, len(normals)
    if tuple(normals.shape) != (steps, n, d):
        raise ValueError(f"velocities are (steps, {n}, {d}) for these states, got {tuple(normals.shape)}")
    if kernel.max_depth > _DEEPEST:
        raise ValueError(f"compiled NUTS doubles at most {_DEEPEST} times, got max_depth={kernel.max_depth}")
    draws = 2 * kernel.max_depth + 2**kernel.max_depth - 1
    if uniforms is not None and tuple(uniforms.shape) != (steps, draws, n):
        raise ValueError(f"uniforms are {(steps, draws, n)}, got {tuple(uniforms.shape)}")
    after = {name: getattr(state, name).clone(memory_format=torch.contiguous_format) for name in _STATE}
    kind, rank, mass = _mass(tune.mass, n, d)
    given: dict[str, Tensor | None] = {
        **dict.fromkeys(_INPUTS), **mass,
        "normals": normals, "step_size": tune.step_size.expand(n), "uniforms": uniforms,
    }  # fmt: skip
    given = {k: None if t is None else t.to(x.dtype).contiguous() for k, t in given.items()} | {
        "seeds": seeds.to(torch.int64).contiguous()
    }
    found = {name: torch.empty((steps, n), dtype=_DTYPES.get(name, x.dtype)) for name in _OUTPUTS}
    found["x"] = x.new_empty(steps, n, d)
    job = _Job(
        n, steps, kernel.max_depth, kind, rank, kernel.max_energy_error,
        *(after[name].data_ptr() for name in _STATE),
        *(0 if (t := given[name]) is None else t.data_ptr() for name in _INPUTS),
        *(found[name].data_ptr() for name in _OUTPUTS),
    )  # fmt: skip
    if library.nuts_transitions(ctypes.byref(job), pointers(constants)):
        raise MemoryError(f"no room for trajectories of {d} dimensions with max_depth={kernel.max_depth}")
    states = {name: found.pop(name) for name in ("x", "energy")}
    found["energy"] = found.pop("hamiltonian")
    return state.having(after), Trace(states, Info, found)


_STATE = ("x", "energy", "score")
_DTYPES = {"accepted": torch.bool, "divergent": torch.bool, "num_leapfrog": torch.long}


def _mass(mass: Mass | None, n: int, d: int) -> tuple[int, int, dict[str, Tensor]]:
    """Its kind, its rank, and its arrays."""
    if mass is None:
        return _PLAIN, 0, {}
    if isinstance(mass, Diagonal):
        shape = (n, d) if mass.scale.ndim == 2 else (d,)
        return _SEPARATE if mass.scale.ndim == 2 else _DIAGONAL, 0, {"scale": mass.scale.expand(shape)}
    if isinstance(mass, LowRank):
        return _LOW_RANK, mass.basis.shape[1], {"scale": mass.scale, "basis": mass.basis, "stretch": mass.stretch}
    factor = mass.push(torch.eye(d, dtype=mass.variances.dtype)).mT
    return _MATRIX, 0, {"scale": factor}
