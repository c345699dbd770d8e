r"""A causal transformer over tokens or reals, with attention as plain matrix products.

Input t of the first layer is the embedding of value t−1 (a learned vector for t = 0) plus that of the position and of
the label, so that output t is a function of the values before t alone. Matrix products, unlike fused attention kernels,
can be differentiated twice.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from boltzmix.models.nets.embedding import LabelEmbedding
from boltzmix.models.nets.values import ValueEmbedding, check_sizes, label_bias


class CausalBlock(nn.Module):
    """``h ← h + attention(norm h)``, ``h ← h + perceptron(norm h)``; position t attends to positions up to t."""

    def __init__(self, hidden: int, heads: int, expansion: int) -> None:
        """Build the block; its two last projections start at zero."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.project = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, expansion * hidden), nn.Linear(expansion * hidden, hidden)
        for last in (self.project, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, h: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """``(N, T, hidden)`` to the same shape.

        Args:
            h: features of all T positions, or with ``seen`` of the position after those seen.
            seen: keys and values ``(N, heads, t, …)`` of earlier positions, which this call extends in place.
        """
        n, length, hidden = h.shape
        q, k, v = self.qkv(self.norm1(h)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if seen is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(seen, (k, v), strict=True)) if seen else (k, v)
            seen[:] = [k, v]
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if seen is None:
            later = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(n, length, hidden)
        h = h + self.project(mixed)
        return h + self.down(nn.functional.gelu(self.up(self.norm2(h))))


class CausalTransformer(nn.Module):
    """``(N, T)`` values to ``(N, T, outputs)``, T ≤ length; row t depends on the values before t and on the label.

    Args:
        length: largest T.
        outputs: numbers put out for each value: K logits for K levels, 3·M for a mixture of M logistics.
        levels: number of levels of long inputs; None for reals.
        hidden: width of the layers.
        depth: number of layers.
        heads: attention heads.
        expansion: width of the perceptrons in units of ``hidden``.
        num_classes: number of labels; None for networks without labels.

    Raises:
        ValueError: sizes that are not positive ints, heads that do not divide ``hidden``, inputs longer than
            ``length``.

    Source: A. Vaswani et al. (2017), Attention is all you need; with normalisation before each layer.

    Example:
        >>> import torch
        >>> CausalTransformer(8, 5, levels=5, hidden=16, depth=1)(torch.zeros(2, 8, dtype=torch.long)).shape
        torch.Size([2, 8, 5])
    """

    layout = "sequence"

    def __init__(
        self,
        length: int,
        outputs: int,
        *,
        levels: int | None = None,
        hidden: int = 64,
        depth: int = 3,
        heads: int = 4,
        expansion: int = 4,
        num_classes: int | None = None,
    ) -> None:
        """Build the layers; the last one starts at zero."""
        super().__init__()
        check_sizes(length=length, outputs=outputs, hidden=hidden, depth=depth, heads=heads, expansion=expansion)
        if hidden % heads:
            raise ValueError(f"heads must divide hidden, got {heads} heads for {hidden} features")
        self.length, self.outputs, self.levels, self.num_classes = length, outputs, levels, num_classes
        self.values = ValueEmbedding(levels, hidden)
        self.start = nn.Parameter(0.5 * torch.randn(hidden))
        self.positions = nn.Parameter(0.5 * torch.randn(length, hidden))
        self.label = None if num_classes is None else LabelEmbedding(num_classes, hidden)
        self.blocks = nn.ModuleList(CausalBlock(hidden, heads, expansion) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(hidden), nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, values: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, T)`` values and ``(N,)`` labels or None to ``(N, T, outputs)``."""
        if values.ndim != 2 or not 1 <= values.shape[1] <= self.length:
            raise ValueError(f"this network takes (N, T) with T <= {self.length}, got {tuple(values.shape)}")
        start = self.start.expand(len(values), 1, -1)
        # The last value is embedded too, and dropped: it is the condition of nothing here.
        h = torch.cat([start, self.values(values)[:, :-1]], 1) + self.positions[: values.shape[1]]
        bias = label_bias(self.label, label)
        h = h if bias is None else h + bias[:, None]
        for block in self.blocks:
            h = block(h)
        return self.last(self.norm(h))

    def decoder(self, n: int, label: Tensor | None = None) -> Callable[[Tensor | None], Tensor]:
        """For sampling: a function that takes value t−1 ``(N,)`` (None for t = 0) and returns row t, ``(N, outputs)``.

        It keeps keys and values of the positions before, so that T rows cost T positions instead of T².
        """
        seen: list[list[Tensor]] = [[] for _ in self.blocks]
        bias, position = label_bias(self.label, label), 0

        def advance(previous: Tensor | None) -> Tensor:
            nonlocal position
            h = self.start.expand(n, 1, -1) if previous is None else self.values(previous[:, None])
            h = h + self.positions[position]
            h = h if bias is None else h + bias[:, None]
            for block, cache in zip(self.blocks, seen, strict=True):
                h = block(h, cache)
            position += 1
            return self.last(self.norm(h))[:, 0]

        return advance
