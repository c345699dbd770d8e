"""A causal network with the order in which it reads an event."""

import torch
from torch import Tensor, nn

from boltzmix.models.orders import raster


class Ordered(nn.Module):
    """The network with the order of its variables: shared, not copied, by every conditional view of one model."""

    order: Tensor

    def __init__(self, net: nn.Module, order: Tensor, event_shape: tuple[int, ...]) -> None:
        """Refuse networks that cannot read such an event in this order."""
        super().__init__()
        self.net, self.event_shape = net, event_shape
        self.image = getattr(net, "layout", "sequence") == "image"
        self.register_buffer("order", order)
        if self.image:
            if len(event_shape) != 3:
                raise ValueError(f"{type(net).__name__} takes images: event_shape=(C, H, W), got {event_shape}")
            if not torch.equal(order, raster(event_shape).to(order)):
                raise ValueError(
                    f"{type(net).__name__} is causal in raster order; for others take CausalTransformer or WaveNet"
                )
        longest = getattr(net, "length", None)
        if longest is not None and longest < len(order):
            raise ValueError(f"the network takes {longest} values, an event of shape {event_shape} has {len(order)}")

    def from_the_left(self) -> bool:
        """Whether the order is 0, 1, 2, …"""
        return torch.equal(self.order, torch.arange(len(self.order)).to(self.order))

    def arrange(self, x: Tensor) -> Tensor:
        """``(N, *event)`` to values in the model's order, ``(N, D)``."""
        return x.flatten(1)[:, self.order]

    def restore(self, values: Tensor) -> Tensor:
        """Values in the model's order ``(N, D)`` to ``(N, *event)``."""
        return values[:, self.order.argsort()].reshape(-1, *self.event_shape)

    def forward(self, values: Tensor, label: Tensor | None) -> Tensor:
        """Parameters ``(N, T, P)`` of the first T conditionals, from the first T values in order."""
        if self.image:
            out = self.net(self.restore(values), label)
            if out.shape[:-1] == (len(values), *self.event_shape):
                return out.flatten(1, -2)[:, self.order]
        else:
            out = self.net(values, label)
            if out.shape[:-1] == values.shape:
                return out
        shape = ", ".join(map(str, self.event_shape if self.image else values.shape[1:]))
        raise ValueError(f"the network returns (N, {shape}, outputs), got {tuple(out.shape)} for N = {len(values)}")

    def check_causal(self, first: Tensor, second: Tensor, label: int | None) -> None:
        """Refuse a network that looks ahead.

        Args:
            first, second: values in order ``(D,)``; the second ones take the place of the first, one at a time.
            label: a label, −1 for none, None for networks without labels.

        Raises:
            ValueError: parameters of value i that are not bit-identical after a change of value j ≥ i.
        """
        labels = None if label is None else torch.full((1,), label, device=first.device)
        with torch.no_grad():
            before = self(first[None], labels)[0]
            for j in range(len(first)):
                changed = first.clone()
                changed[j] = second[j]
                # One row at a time: a row's place in a batch may change its last digits.
                moved = (self(changed[None], labels)[0] != before).any(-1)[: j + 1].nonzero()
                if len(moved):
                    raise ValueError(
                        f"{type(self.net).__name__} is not causal: value {j} (in the model's order) moves the "
                        f"conditional of value {int(moved[0])}, which may depend on the values before it only"
                    )
