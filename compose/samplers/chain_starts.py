"""Where chains start: the caller's states, or the best of some draws from an over-dispersed box."""

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.flat import FlatTarget, FlatView
from boltzmix.compose.samplers.base import Request

_TRIES = 32
_ROWS = 16_384  # evaluated at once


def chain_starts(view: FlatView, target: FlatTarget, request: Request, scores: bool = True) -> Tensor:
    """The caller's starts, or for each chain the best of 32 draws uniform in (−2, 2), or over the integers.

    The box is one of unconstrained coordinates; the caller's starts are states of the target's own variables.
    ``scores=False`` is for kernels that read energies only, on targets that may have no gradient.

    Raises:
        NonFinite: no draw has a finite energy and score.
        TypeError, ValueError: an ``init`` that is not one state for each chain.
    """
    if request.init is not None:
        return _given(view, request)
    options = {"generator": request.generator, "dtype": view.dtype, "device": view.device}
    box = torch.rand(request.n * _TRIES, view.dim, **options)
    tries = 4.0 * box - 2.0
    if view.levels is not None:
        tries = torch.where(view.levels > 0, (box * view.levels).floor(), tries)
    tries = tries.reshape(request.n, _TRIES, view.dim)
    if not target.has_energy:
        return tries[:, 0].clone()
    width = 1 if view.per_row else max(1, min(_TRIES, _ROWS // request.n))  # a Clamp's conditions belong to their rows
    best, lowest = tries[:, 0].clone(), torch.full((request.n,), torch.inf, dtype=view.dtype, device=view.device)
    for at in range(0, _TRIES, width):
        part = tries[:, at : at + width]
        if scores:
            energy, score = target.energy_and_score(part.reshape(-1, view.dim))
            usable = torch.isfinite(energy) & torch.isfinite(score).all(1)
        else:
            energy = target.energy(part.reshape(-1, view.dim))
            usable = torch.isfinite(energy)
        ranked = torch.where(usable, energy, torch.inf).reshape(request.n, -1)
        least, index = ranked.min(1)
        better = least < lowest
        best = torch.where(better[:, None], part[torch.arange(request.n, device=part.device), index], best)
        lowest = torch.where(better, least, lowest)
    found = torch.isfinite(lowest)
    if not bool(found.any()):
        raise NonFinite(
            f"none of {request.n * _TRIES} starts in (-2, 2)^{view.dim} has a finite energy and score; pass init= with "
            "starts inside the support"
        )
    return torch.where(found[:, None], best, best[lowest.argmin()])


def _given(view: FlatView, request: Request) -> Tensor:
    init = request.init
    if not isinstance(init, (Tensor, dict)):
        raise TypeError(f"init is a state (chains, *event) for MCMC, got {type(init).__name__}")
    request.term._check(init, None)
    x = view.ravel(init).to(view.device)
    if view.levels is not None:
        outside = (view.levels > 0) & ((x < 0) | (x >= view.levels))
        if bool(outside.any()):
            raise ValueError(f"init has values outside 0 … K−1 in {int(outside.sum())} discrete coordinates")
    if x.shape[0] != request.n:
        raise ValueError(f"init holds {x.shape[0]} starts and chains={request.n}; one start for each chain")
    if x.dtype != view.dtype:
        raise TypeError(f"init is {x.dtype} and the target {view.dtype}; convert it, or pass dtype={x.dtype}")
    return x
