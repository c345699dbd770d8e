r"""Divergences of vector fields: the trace of a Jacobian, exact or by Hutchinson's estimate.

For one probe e, :math:`e^\top (\partial v/\partial y)\, e` costs one vector–Jacobian product. Over the D unit vectors
these numbers add up to the trace; over random signs each of them is an unbiased estimate of it (Grathwohl et al., 2019,
*FFJORD*).
"""

import math

import torch
from torch import Tensor

_TOGETHER = 128  # products in one backward, which bounds its memory


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Probes of Hutchinson's estimate: −1 or 1, each with probability ½."""
    bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return 2 * bits.to(like.dtype) - 1


def unit_vectors(like: Tensor) -> Tensor:
    """The D unit vectors ``(D, 1, *event)`` of rows ``(N, *event)``: probes whose products add up to the trace."""
    event = like.shape[1:]
    dim = math.prod(event)
    return torch.eye(dim, dtype=like.dtype, device=like.device).reshape(dim, 1, *event)


def divergence(v: Tensor, y: Tensor, probes: Tensor, create_graph: bool) -> Tensor:
    r""":math:`e_k^\top (\partial v/\partial y)\, e_k` of every probe and row, ``(K, N)``.

    Args:
        v: the field at y, ``(N, *event)``, with its graph.
        y: ``(N, *event)``.
        probes: ``(K, N or 1, *event)``.
        create_graph: whether the result is differentiated again.
    """
    if not v.requires_grad:  # a field that does not depend on y
        return y.new_zeros(len(probes), len(y))
    parts = [_products(v, y, part, create_graph) for part in probes.to(y).split(_TOGETHER)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _products(v: Tensor, y: Tensor, probes: Tensor, create_graph: bool) -> Tensor:
    directions = probes.expand(len(probes), *y.shape)
    # One product needs no vmap, which costs as much again for a small network.
    single = len(probes) == 1
    wanted = directions[0] if single else directions
    (rows,) = torch.autograd.grad(
        v, y, wanted, is_grads_batched=not single, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return y.new_zeros(len(probes), len(y)) if rows is None else (rows * directions).flatten(2).sum(2)
