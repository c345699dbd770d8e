"""What a network is conditioned on, and the units of its data: values that users hand over, checked."""

import hashlib
import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

ConditionValue = int | Tensor


@dataclass(frozen=True)
class Condition:
    """One condition that a network takes, and the value that stands for its absence.

    Args:
        keyword: the network's argument that receives it, batched: ``(N,)`` labels or ``(N, *shape)``.
        classes: labels are 0 … classes − 1; None for conditions that are float tensors.
        shape: shape of a float condition, None where any size goes: ``(None, 768)`` for token embeddings.
        null: the label or tensor that makes the network unconditional; None: the network needs the condition.
    """

    keyword: str
    classes: int | None = None
    shape: tuple[int | None, ...] | None = None
    null: ConditionValue | None = None

    def parse(self, name: str, value: object) -> ConditionValue:
        """A validated label, or a tensor of ``shape``.

        Raises:
            TypeError: neither an int nor a tensor of the right kind.
            ValueError: a label out of range, or a tensor of the wrong shape.
        """
        return self._label(name, value) if self.classes is not None else self._tensor(name, value)

    def _label(self, name: str, value: object) -> int:
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            if value.numel() != 1:
                raise ValueError(
                    f"{name} is one label per term, got a tensor of shape {tuple(value.shape)}; "
                    "make one term per label: they share one forward"
                )
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is an integer label, got {describe(value)}")
        assert self.classes is not None
        null = self.null if isinstance(self.null, int) else None
        if not 0 <= value < self.classes and value != null:
            extra = "" if null is None else f" (or {null} for none)"
            raise ValueError(f"{name} is a label in 0 … {self.classes - 1}{extra}, got {value}")
        return value

    def _tensor(self, name: str, value: object) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} is a floating-point tensor, got {describe(value)}")
        if self.shape is None:
            return value
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in self.shape) + ")"
        if value.ndim == len(self.shape) + 1 and value.shape[0] == 1:
            value = value[0]
        if value.ndim != len(self.shape) or any(
            s not in (None, own) for s, own in zip(self.shape, value.shape, strict=True)
        ):
            raise ValueError(
                f"{name} has shape {wanted}, without a batch dimension, got {tuple(value.shape)}; "
                "make one term per condition: they share one forward"
            )
        return value


def fingerprint(value: object) -> Hashable:
    """Equal for equal numbers and tensors, so that equal conditions merge; learnable tensors are themselves."""
    if not isinstance(value, Tensor):
        return value  # pyright: ignore[reportReturnType]
    if value.requires_grad:
        return ("learnable", id(value))
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return (tuple(value.shape), str(value.dtype), hashlib.sha256(data).hexdigest())


def scale(value: object) -> float:
    """A positive number, the scale of a network's data."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(
            f"data_scale is one positive number, got {describe(value)}; noise that differs between coordinates is no "
            "noise level: use affine(term, loc, scale) for a scale per coordinate"
        )
    if not 0 < value < math.inf:
        raise ValueError(f"data_scale is positive and finite, got {value}")
    return float(value)


def location(value: object, shape: tuple[int, ...]) -> float | Tensor:
    """A number or a finite tensor that broadcasts over the event, the shift of a network's data."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"data_loc is finite, got {value}")
        return float(value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"data_loc is a number or a floating-point tensor, got {describe(value)}")
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits or not bool(torch.isfinite(value).all()):
        raise ValueError(f"data_loc is finite and broadcasts over the event {shape}, got shape {tuple(value.shape)}")
    return value


def describe(value: object) -> str:
    """A value as messages name it."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__
