"""Exact, independent draws of terms that have them: ancestral sampling, push-forward of a flow, a closed form."""

import time
from dataclasses import dataclass

from boltzmix.compose.draw import Draw, zeros
from boltzmix.compose.samplers.base import Request, Sampler, new_info
from boltzmix.compose.variable import first_tensor


@dataclass(frozen=True)
class Exact(Sampler):
    """The term's own ``sample``: no path, no kernel, no bias. For single terms that are ``samplable``.

    Raises:
        TypeError: a term without exact draws, or settings that its draws have no use for.
    """

    def run(self, request: Request) -> Draw:
        """Draw n times."""
        term = request.term
        if not term.samplable:
            raise TypeError(f"{term.name()} has no exact draws; use SMC, Annealed or MCMC, or leave out sampler=")
        given = [name for name in ("init", "checkpoint", "dtype") if getattr(request, name) is not None]
        if given:
            raise TypeError(f"Exact draws as {term.name()} is and takes no {', '.join(given)}")
        clock = time.perf_counter()
        x = term.sample(request.n, request.generator)
        info = new_info(self, request)
        info.ess, info.seconds = float(request.n), time.perf_counter() - clock
        weights = zeros(request.n, first_tensor(x)).float()
        log_z = 0.0 if term.normalized else None
        return Draw(x, weights, log_z, None if log_z is None else 0.0, info, [])
