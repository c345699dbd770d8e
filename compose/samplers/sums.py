"""Sums that do not commute with noising: every member is drawn by itself and weighed by its own log Z."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product
from boltzmix.compose.samplers.base import Request, Sampler, new_info
from boltzmix.compose.samplers.particles import systematic
from boltzmix.compose.term import Term


def split_sum(term: Term) -> list[tuple[float, Term]]:
    """(log-weight, member) of a sum that does not commute with noising; one pair otherwise.

    A product with such a sum as a factor is expanded: (p + q) r = p r + q r.
    """
    if isinstance(term, Mixture) and term.path == "annealed":
        found = []
        for log_weight, member in zip(term.log_weights, term._terms(), strict=True):
            found += [(log_weight + extra, inner) for extra, inner in split_sum(member)]
        return found
    if isinstance(term, Product):
        pairs = term.pairs()
        for index, (factor, exponent) in enumerate(pairs):
            if isinstance(factor, Mixture) and factor.path == "annealed" and exponent.constant == 1.0:
                rest = pairs[:index] + pairs[index + 1 :]
                found = []
                for log_weight, member in zip(factor.log_weights, factor._terms(), strict=True):
                    inner = Product([(member, 1.0), *rest], 0.0, term.variables)
                    found += [(log_weight + term.log_scale + extra, t) for extra, t in split_sum(inner)]
                return found
    return [(0.0, term)]


def run_sum(
    sampler: Any, request: Request, members: list[tuple[float, Term]], run: Callable[[Any, Request], Draw]
) -> Draw:
    """Draw every member by itself with ``run``, weigh each by its own log Z, and resample over all.

    Raises:
        MissingEnergy: a member without an energy.
    """
    clock = time.perf_counter()
    n, count = request.n, len(members)
    sizes = [n // count + (k < n % count) for k in range(count)]
    sizes = [max(s, min(n, 256)) for s in sizes]
    draws = []
    for k, ((_, member), size) in enumerate(zip(members, sizes, strict=True)):
        part = replace_request(request, member, size, k)
        draws.append(run(replace(sampler, record=False), part))
    logs = torch.tensor([w + _known_log_z(d) for (w, _), d in zip(members, draws, strict=True)], dtype=torch.float64)
    total = logs.logsumexp(0)
    shares = (logs - total).exp()
    errors = torch.tensor([_known_se(d) for d in draws], dtype=torch.float64)
    states = [request.view().ravel(d.x) for d in draws]
    weights = torch.cat([share * d.log_weights.double().softmax(0) for share, d in zip(shares, draws, strict=True)])
    pool = torch.cat(states)
    view = request.view()
    info = new_info(sampler, request)
    info.ess = float(1.0 / (weights**2).sum())
    if sampler.resample:
        counts = _allocate(shares, n, request.generator)
        chosen = []
        for k, state in enumerate(states):
            order = torch.randperm(len(state), generator=request.generator, device=state.device)
            repeats = -(-int(counts[k]) // len(state)) if len(state) else 0
            chosen.append(state[torch.cat([order] * max(repeats, 1))[: int(counts[k])]])
        x, log_weights = _shuffled(torch.cat(chosen), request.generator), zeros(n, pool)
    else:
        x, log_weights = pool, (weights.log() + math.log(len(pool))).to(pool)
    spent = sum(d.info.evaluations * s for d, s in zip(draws, sizes, strict=True))
    info.evaluations = spent / n
    info.network_rows = sum(d.info.network_rows * s for d, s in zip(draws, sizes, strict=True)) / n
    info.acceptance = math.fsum(d.info.acceptance for d in draws) / count
    info.divergences = sum(d.info.divergences for d in draws)
    info.step_size = draws[0].info.step_size
    info.path = "+".join(d.info.path for d in draws)
    info.reason = f"{request.reason}; a sum of {count} members, each drawn by itself and weighed by its own log Z"
    info.extra = {
        "raw_log_z": float(total),
        "members": [
            {"weight": float(s), "log_z": _known_log_z(d), "path": d.info.path}
            for s, d in zip(shares, draws, strict=True)
        ],
    }
    if "compile" in draws[0].info.extra:
        spent = math.fsum(d.info.extra["compile"]["seconds"] for d in draws)
        info.extra["compile"] = draws[0].info.extra["compile"] | {"seconds": spent}
    info.seconds = time.perf_counter() - clock
    known = all(d.log_z is not None for d in draws)
    if not known:
        warnings.warn(
            f"{request.term.name()}: a member's energy has a free constant, so the weights of this sum rest on it; "
            "calibrate(member) fixes it",
            SamplingWarning,
            stacklevel=4,
        )
    se = math.sqrt(float(((shares * errors) ** 2).sum()))
    return Draw(view.unravel(x), log_weights, float(total) if known else None, se if known else None, info)


def run_strata(sampler: Sampler, request: Request) -> Draw:
    """Draw a sum of score-only members: as many particles from each as its weight says."""
    assert isinstance(request.term, Mixture)
    clock = time.perf_counter()
    mixture = request.term
    shares = torch.tensor(mixture.log_weights, dtype=torch.float64).softmax(0)
    counts = _allocate(shares, request.n, request.generator)
    draws = []
    for k, (member, size) in enumerate(zip(mixture._terms(), counts.tolist(), strict=True)):
        if size:
            draws.append(sampler.run(replace_request(request, member, size, k)))
    view = request.view()
    x = torch.cat([view.ravel(d.x) for d in draws])
    if not view.per_row:
        x = _shuffled(x, request.generator)
    info = new_info(sampler, request)
    info.reason = f"{request.reason}; a mixture of score-only members, {counts.tolist()} draws from each"
    info.evaluations = sum(d.info.evaluations * len(d) for d in draws) / request.n
    info.network_rows = sum(d.info.network_rows * len(d) for d in draws) / request.n
    info.acceptance = math.fsum(d.info.acceptance * len(d) for d in draws) / request.n
    info.divergences = sum(d.info.divergences for d in draws)
    info.ess, info.seconds = float(request.n), time.perf_counter() - clock
    return Draw(view.unravel(x), zeros(request.n, x), None, None, info)


def replace_request(request: Request, term: Term, n: int, index: int) -> Request:
    """The same request for a member of a sum, with a checkpoint of its own beside the given one."""
    file = request.checkpoint
    file = None if file is None else file.with_name(f"{file.name}.{index}")
    return replace(request, term=term, n=n, progress=request.progress or False, checkpoint=file)


def _allocate(shares: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Counts that add up to n, within one of n·share, unbiased."""
    return torch.bincount(systematic(shares, n, generator).cpu(), minlength=len(shares))


def _shuffled(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows in random order, so that the first k are a fair subset of all members."""
    return x[torch.randperm(len(x), generator=generator, device=x.device)]


def _known_log_z(draw: Draw) -> float:
    """log Z of the energies as they are, whether or not their constants mean something."""
    return draw.info.extra["raw_log_z"]


def _known_se(draw: Draw) -> float:
    return draw.log_z_se if draw.log_z_se is not None else 0.0
