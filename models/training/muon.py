r"""Muon: weight matrices move by an orthogonalised momentum, everything else by AdamW.

With the momentum :math:`M = U S V^T` of a layer's gradient, a step moves its weights along :math:`U V^T`, so that
every direction a layer has learns at one rate, not only the few that dominate the gradient. A convolution is the
matrix ``(channels out, channels in · height · width)``. The factor :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}`
makes the steps as long as AdamW's usually are, so that both take the same learning rates.

Source: K. Jordan and others (2024), Muon: an optimizer for hidden layers in neural networks; the factor: J. Liu and
others (2025), Muon is scalable for LLM training.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_BUFFER = "momentum_buffer"


class Muon(torch.optim.AdamW):
    """``torch.optim.Muon`` for the weights of linear layers and convolutions, AdamW for embeddings, biases, gains.

    All parameters are in ``param_groups``, the matrices in the second of the two, and their momentum is in ``state``
    in the shape of the parameter, as schedules, loss scales and checkpoints expect.

    Args:
        model: whose modules tell embeddings from matrices.
        named: the parameters that are trained.
        options: ``lr`` and ``weight_decay`` of both, ``betas`` of AdamW.

    Raises:
        ValueError: matrices in another layout than the contiguous one, of which there are no flat views.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Parameter], **options: Any) -> None:
        """Sort the parameters."""
        tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        matrices = [p for p in named.values() if p.ndim >= 2 and id(p) not in tables]
        chosen = {id(p) for p in matrices}
        if strided := [name for name, p in named.items() if id(p) in chosen and not p.is_contiguous()]:
            raise ValueError(
                f"muon takes contiguous weights, and {strided[0]} is not: model.to(memory_format="
                "torch.contiguous_format)"
            )
        super().__init__(
            [{"params": [p for p in named.values() if id(p) not in chosen]}, {"params": matrices}], **options
        )
        self._flat = [nn.Parameter(p.detach().flatten(1)) for p in matrices]  # views of the same memory
        self._muon = torch.optim.Muon(self._flat, adjust_lr_fn="match_rms_adamw") if matrices else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both."""
        groups = self.param_groups
        try:
            self.param_groups = groups[:1]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        if self._muon is None:
            return loss
        self._muon.param_groups[0].update(lr=groups[1]["lr"], weight_decay=groups[1]["weight_decay"])
        for parameter, flat in zip(groups[1]["params"], self._flat, strict=True):
            flat.grad = None if parameter.grad is None else parameter.grad.flatten(1)
            if flat.grad is not None:
                buffer: Tensor = self.state[parameter].setdefault(_BUFFER, torch.zeros_like(parameter))
                self._muon.state[flat][_BUFFER] = buffer.flatten(1)
        self._muon.step()
        return loss
