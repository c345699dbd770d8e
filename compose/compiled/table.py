"""The table :data:`OPERATIONS`: by overload name, what writes an operation of torch on the tensors of one row in C++.

The files that know the operations fill it; :mod:`boltzmix.compose.compiled.operations` imports them all.
"""

from collections.abc import Callable
from typing import Any

Lowering = Callable[..., Any]
OPERATIONS: dict[str, Lowering] = {}


def operation(*names: str) -> Callable[[Lowering], Lowering]:
    def add(lowering: Lowering) -> Lowering:
        OPERATIONS.update(dict.fromkeys((f"aten::{name}" if "::" not in name else name for name in names), lowering))
        return lowering

    return add


def result_shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
