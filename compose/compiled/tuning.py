"""A tuning as tensors, and tensors as a tuning, without the checks that look at numbers."""

from dataclasses import fields

import torch
from torch import Tensor

from boltzmix.compose.errors import CompileError
from boltzmix.compose.kernels.base import Tune
from boltzmix.compose.kernels.mass import Diagonal, Mass


def tensors_of(tune: Tune) -> dict[str, Tensor]:
    """Everything that a step may read, by name; those of the mass begin with ``mass.``.

    Raises:
        CompileError: a tuning with more than step size, mass and length.
    """
    if type(tune) is not Tune:
        raise CompileError(f"a {type(tune).__name__} is not one step size, one mass and one length")
    found = {name: t for name in ("step_size", "length") if (t := getattr(tune, name)) is not None}
    if tune.mass is not None:
        found |= {f"mass.{f.name}": getattr(tune.mass, f.name) for f in fields(tune.mass)}
    return found


def per_chain(tune: Tune) -> dict[str, bool]:
    """Of each of these tensors, whether every chain has a part of its own."""
    own_mass = isinstance(tune.mass, Diagonal) and tune.mass.variance.ndim == 2
    return {
        name: own_mass if name.startswith("mass.") else tensor.ndim > 0 for name, tensor in tensors_of(tune).items()
    }


def structure(tune: Tune) -> tuple[object, ...]:
    """What code for a tuning depends on: its parts, and which of them chains share."""
    return (type(tune.mass), *((name, tuple(tensors_of(tune)[name].shape[-1:])) for name in tensors_of(tune)),
            *per_chain(tune).items())  # fmt: skip


def rebuilt(like: Tune, tensors: dict[str, Tensor]) -> Tune:
    """A tuning with these tensors in the place of its own, unchecked."""
    mass: Mass | None = None
    if like.mass is not None:
        mass = object.__new__(type(like.mass))
        for name, tensor in tensors.items():
            if name.startswith("mass."):
                object.__setattr__(mass, name.removeprefix("mass."), tensor)
    tune = object.__new__(Tune)
    values = {"step_size": tensors["step_size"], "inverse_mass": mass, "length": tensors.get("length"), "mass": mass}
    for name, value in values.items():
        object.__setattr__(tune, name, value)
    return tune


def first_row(tune: Tune) -> dict[str, Tensor]:
    """The tensors with those parts that belong to the first chain."""
    own = per_chain(tune)
    return {name: tensor[:1] if own[name] else tensor for name, tensor in tensors_of(tune).items()}


def contiguous(tune: Tune, dtype: torch.dtype) -> list[Tensor]:
    """The tensors as compiled code reads them."""
    return [tensor.to(dtype).contiguous() for tensor in tensors_of(tune).values()]
