"""``sample``: from a formula to a draw."""

import os
from pathlib import Path
from typing import Any

import torch

from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.flat import device_of
from boltzmix.compose.kernels.base import Kernel
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.samplers.base import Request, Sampler, frozen
from boltzmix.compose.samplers.exact import Exact
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import SMC, Annealed
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable

_LARGEST_FOR_WEIGHTS = 512


def sample(
    target: Term,
    n: int | None = None,
    *,
    sampler: Sampler | None = None,
    chains: int | None = None,
    init: Any = None,
    seed: int | torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Draw:
    """Draw from a formula.

    Args:
        target: any term; networks in it are run in evaluation mode with frozen parameters, both restored.
        n: number of particles.
        sampler: None takes Exact for a term with discrete variables that can be drawn exactly, SMC for composites
            with energies (Annealed beyond some hundreds of dimensions and for a
            condition in each row), Reverse for a single score-only model, Annealed for other score-only terms;
            ``info.reason`` says which.
        chains: number of chains, for MCMC; give this or ``n``.
        init: starts ``(chains, *event)`` for MCMC; states ``(n, *event)`` at the first level for Reverse; for static
            targets under SMC, a term to start from.
        seed: an int, a ``torch.Generator`` or None for a fresh one; the same seed, device and target give the
            same numbers.
        device: where states live; by default where the target's parameters are.
        dtype: of the states, float32 or float64; by default that of the target's parameters.
        progress: show a bar; None shows it on a terminal.
        checkpoint: a file that makes a long run resumable, bit for bit, after it was killed.

    Returns:
        A :class:`Draw`.

    Raises:
        ValueError: settings that contradict each other.
        MissingEnergy: a sampler that needs energies, on a score-only term.
        NotNormalizable: a composite without a finite integral.
        TypeError: discrete variables, or states in half precision.

    Example:
        >>> import torch
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> draw = sample(Gaussian(torch.zeros(2), 1.0) * Gaussian(torch.ones(2), 1.0), 1000, seed=0)
        >>> import math
        >>> draw.info.sampler, abs(draw.log_z + math.log(4 * math.pi) + 0.5) < 0.1
        ('SMC', True)
    """
    if not isinstance(target, Term):
        raise TypeError(f"sample() draws from a term, got {type(target).__name__}; wrap it with boltzmix.term(...)")
    if isinstance(sampler, type):
        raise TypeError(f"sampler is an instance, got the class {sampler.__name__}; write {sampler.__name__}()")
    for kernel in (n, sampler):
        if isinstance(kernel, Kernel):
            name = type(kernel).__name__
            raise TypeError(f"got {name}, which is a kernel; write sample(…, chains=4, sampler=MCMC({name}(…)))")
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(
            "sampler is one of SMC(), Annealed(), AIS(), Reverse(), FKC(), SuperDiff(), Twisted(), MCMC(), Exact(), "
            f"got {type(sampler).__name__}"
        )
    if (n is None) == (chains is None):
        raise ValueError("say how much to draw: n= particles, or chains= for MCMC, and not both")
    if sampler is None:
        sampler, reason = choose_sampler(target, chains is not None)
    else:
        reason = "as asked"
    if isinstance(sampler, MCMC) != (chains is not None):
        wanted = "chains=" if isinstance(sampler, MCMC) else "n="
        raise ValueError(f"{type(sampler).__name__} takes {wanted}, the number of its draws is its own setting")
    count = chains if n is None else n
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        what = "draws" if chains is None else "chains"
        raise ValueError(f"the number of {what} is a positive int, got {count!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype is a floating-point dtype, got {dtype}")
    if init is not None and not sampler.takes_states and not isinstance(init, Term):
        raise TypeError(
            f"init for {type(sampler).__name__} is a normalised term to start from, got {type(init).__name__}"
        )
    if checkpoint is not None and seed is None and not isinstance(sampler, Reverse):
        raise ValueError("checkpoint= resumes a run of the same seed: pass seed=, a run without one cannot be resumed")
    generator, number = as_generator(seed, device_of(target) if device is None else device)
    request = Request(
        term=target, n=count, generator=generator, seed=number, reason=reason, dtype=dtype, device=device,
        init=init, progress=progress, checkpoint=None if checkpoint is None else Path(checkpoint),
    )  # fmt: skip
    with frozen(target), torch.no_grad():
        return sampler.run(request)


def choose_sampler(target: Term, chains: bool) -> tuple[Sampler, str]:
    """The default sampler for a target, and why."""
    if chains:
        return MCMC(), "chains were asked for"
    variables = target.variables
    listed = [variables] if isinstance(variables, Variable) else list(variables.values())
    if target.samplable and any(v.discrete for v in listed):
        return Exact(), "discrete variables that can be drawn exactly"
    if target.has_energy and any(getattr(module, "per_row", False) is True for module in target.modules()):
        return Annealed(), "a condition for each draw makes n different targets, so annealed MCMC without weights"
    if isinstance(target, Mixture) and not target.has_energy:
        inner, why = choose_sampler(target._terms()[0], False)
        return inner, f"a mixture of score-only members: {why}"
    dim = sum(torch.Size(v.shape).numel() for v in listed)
    if target.has_energy:
        if dim > _LARGEST_FOR_WEIGHTS and target.path != "static" and not target.samplable:
            return Annealed(), f"weights degenerate in {dim} dimensions, so annealed MCMC without weights"
        return SMC(), "energies are known, so SMC with weights"
    if target.path == "noised":
        return Reverse(), "a single score-only diffusion, so reverse diffusion"
    if target.path == "annealed" and target.has_score:
        return Annealed(), "a score-only composite, so annealed MCMC"
    target._require_score("sample()")
    raise MissingEnergy(
        f"{target.name()} is static and score-only: there is no path and no energy; run chains with "
        "MCMC(UHMC(step_size=…)) and say how biased they may be"
    )


def as_generator(
    seed: int | torch.Generator | None, device: torch.device | str | None
) -> tuple[torch.Generator, int | None]:
    """The generator to use and the seed to record."""
    where = torch.device("cpu" if device is None else device)
    if isinstance(seed, torch.Generator):
        if seed.device.type != where.type:
            raise ValueError(
                f"the generator lives on {seed.device} and the states on {where}; make it with "
                f"torch.Generator(device={str(where)!r})"
            )
        return seed, None
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed is an int, a torch.Generator or None, got {type(seed).__name__}")
    generator = torch.Generator(device=where)
    number = int(torch.randint(2**31, ()).item()) if seed is None else seed
    generator.manual_seed(number)
    return generator, number
