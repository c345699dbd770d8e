"""Mixed precision: autocast, and for half precision a loss scale that adapts.

``bf16`` has float32's range and needs no scale. ``fp16`` ends at 65504: small gradients vanish and large ones
overflow, so the loss is multiplied by a scale that halves when a gradient overflows and doubles after 2,000 good steps
(Micikevicius et al., 2018, *Mixed precision training*). A step whose gradients overflow is left out and counted.
"""

import contextlib
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite

Name = Literal["float32", "bf16", "fp16"]
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WARN_AFTER = 8
STOP_AFTER = 24  # the scale has fallen from 2^16 to below one hundredth by then


class Precision:
    """What a forward pass computes in, and what its loss is multiplied by.

    Args:
        name: ``"float32"`` leaves everything in the dtype of the weights.
        device: where the model lives.
        parameters: the model's; mixed precision keeps them in float32.

    Raises:
        ValueError: an unknown name, weights of another dtype, or hardware without bfloat16.
    """

    def __init__(self, name: str, device: torch.device, parameters: Iterable[nn.Parameter]) -> None:
        """Check that the device can do it."""
        if name not in DTYPES:
            raise ValueError(f"precision is one of {', '.join(map(repr, DTYPES))}, got {name!r}")
        self.name, self.device, self.dtype = name, device, DTYPES[name]
        self.scaler: Any = None
        self.skipped = 0  # steps in a row
        if self.dtype is None:
            return
        other = sorted({str(p.dtype) for p in parameters if p.dtype != torch.float32})
        if other:
            raise ValueError(f"precision={name!r} keeps float32 weights and this model holds {', '.join(other)}")
        if not torch.amp.autocast_mode.is_autocast_available(device.type):
            raise ValueError(f"precision={name!r} is not available on {device}; use precision='float32'")
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use precision='fp16' or 'float32'")
        if name == "fp16":
            self.scaler = torch.amp.GradScaler(device.type)

    def autocast(self) -> Any:
        """The context of a loss.

        Cast weights are not cached: versions of torch exist in which a loss that also samples without gradients finds
        the weights cached there again, without a graph, and trains nothing.
        """
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients in the units of the loss."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: bool, step: int) -> bool:
        """Take the step, or leave it out where half-precision gradients overflowed; whether it was taken.

        Raises:
            NonFinite: too many in a row.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        if finite:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped == WARN_AFTER:
            warnings.warn(
                f"fp16: the gradients of {self.skipped} steps in a row overflowed, up to step {step}; these steps were "
                f"left out and the loss scale is down to {self.scaler.get_scale():g}",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.skipped >= STOP_AFTER:
            raise NonFinite(
                f"half-precision overflow: the gradients of {self.skipped} steps in a row, up to step {step}, do not "
                f"fit into fp16, even with a loss scale of {self.scaler.get_scale():g}; use precision='bf16' or "
                "'float32', or lower lr"
            )
        return finite

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {} if self.scaler is None else {**self.scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from :meth:`state`."""
        if self.scaler is not None:
            self.skipped = int(state["skipped"])
            self.scaler.load_state_dict({k: v for k, v in state.items() if k != "skipped"})
