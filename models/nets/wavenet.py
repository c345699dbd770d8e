r"""WaveNet: dilated causal convolutions over a sequence of tokens or reals.

Layer :math:`\ell` sees features at t and :math:`t - d_\ell`, and adds

.. math:: W_r\big(\tanh(W_f * h + b_f) \odot \sigma(W_g * h + b_g)\big)

to the residual path, with a second projection of the same gate to the outputs. Values are moved one place to the right
before the first layer, so that output t is a function of the values before t alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from boltzmix.models.nets.embedding import LabelEmbedding
from boltzmix.models.nets.values import ValueEmbedding, check_sizes, label_bias


class WaveNet(nn.Module):
    """``(N, T)`` values to ``(N, T, outputs)``; row t depends on the values before t and on the label.

    Row t sees the ``receptive_field`` values before it, ``1 + (kernel − 1) · Σ dilations``.

    Args:
        outputs: numbers put out for each value: K logits for K levels, 3·M for a mixture of M logistics.
        levels: number of levels of long inputs; None for reals.
        hidden: features of every layer.
        dilations: one layer for each.
        kernel: taps of each convolution.
        length: largest T, where positions matter (images, permutations): each then has a vector of its own. None for
            sequences of any length whose law does not change along them.
        num_classes: number of labels; None for networks without labels.

    Raises:
        ValueError: sizes that are not positive ints, or inputs longer than ``length``.

    Source: A. van den Oord et al. (2016), WaveNet: a generative model for raw audio.

    Example:
        >>> import torch
        >>> net = WaveNet(5, levels=5, hidden=8, dilations=(1, 2, 4))
        >>> net(torch.zeros(2, 12, dtype=torch.long)).shape, net.receptive_field
        (torch.Size([2, 12, 5]), 8)
    """

    layout = "sequence"

    def __init__(
        self,
        outputs: int,
        *,
        levels: int | None = None,
        hidden: int = 48,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32),
        kernel: int = 2,
        length: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        """Build the layers; the last one starts at zero."""
        super().__init__()
        check_sizes(outputs=outputs, hidden=hidden, kernel=kernel, layers=len(dilations))
        check_sizes(**{f"dilations[{i}]": d for i, d in enumerate(dilations)})
        self.outputs, self.levels, self.length, self.num_classes = outputs, levels, length, num_classes
        self.receptive_field = 1 + (kernel - 1) * sum(dilations)
        self.values = ValueEmbedding(levels, hidden)
        self.start = nn.Parameter(0.5 * torch.randn(hidden))
        self.positions = None if length is None else nn.Parameter(0.5 * torch.randn(length, hidden))
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden)
        self.gates = nn.ModuleList(nn.Conv1d(hidden, 2 * hidden, kernel, dilation=d) for d in dilations)
        self.biases = nn.ModuleList(nn.Linear(hidden, 2 * hidden, bias=False) for _ in dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(hidden, hidden, 1) for _ in dilations)
        self.skips = nn.ModuleList(nn.Conv1d(hidden, hidden, 1) for _ in dilations)
        self.middle, self.last = nn.Conv1d(hidden, hidden, 1), nn.Conv1d(hidden, outputs, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, values: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, T)`` values and ``(N,)`` labels or None to ``(N, T, outputs)``."""
        longest = torch.inf if self.length is None else self.length
        if values.ndim != 2 or not 1 <= values.shape[1] <= longest:
            raise ValueError(f"this network takes (N, T) with 1 <= T <= {longest}, got {tuple(values.shape)}")
        start = self.start.expand(len(values), 1, -1)
        h = torch.cat([start, self.values(values)[:, :-1]], 1)
        h = h if self.positions is None else h + self.positions[: values.shape[1]]
        bias = label_bias(self.label, label)
        h, collected = h.mT, torch.zeros(())
        for convolution, modulate, residual, skip in zip(
            self.gates, self.biases, self.residuals, self.skips, strict=True
        ):
            assert isinstance(convolution, nn.Conv1d)
            reach = (convolution.kernel_size[0] - 1) * convolution.dilation[0]
            a = convolution(pad(h, (reach, 0)))
            a = a if bias is None else a + modulate(bias)[:, :, None]
            wave, gate = a.chunk(2, 1)
            gated = wave.tanh() * gate.sigmoid()
            h = h + residual(gated)
            collected = skip(gated) if collected.ndim == 0 else collected + skip(gated)
        return self.last(silu(self.middle(silu(collected)))).mT
