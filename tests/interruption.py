"""Runs that are killed after a share of their evaluations, and go on from their checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from boltzmix.compose.callables import term
from boltzmix.compose.draw import Draw
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC, base


class Killed(BaseException):
    """Stands for a signal."""


@dataclass(frozen=True)
class Interrupted:
    """Draws of a run that was left alone and of one that was killed, and what a third call would be of."""

    whole: Draw
    resumed: Draw
    again: Callable[[int], Draw]


def interrupt(
    energy: Callable[[Tensor], Tensor],
    sampler: MCMC,
    share: float,
    file: Path,
    seed: int,
    *,
    alone: MCMC | None = None,
    after_death: Callable[[], None] | None = None,
    dtype: torch.dtype | None = None,
) -> Interrupted:
    """Four chains in two dimensions, saved after every block; ``alone`` is the sampler of the run left alone."""
    calls, last = 0, math.inf

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls >= last:
            raise Killed
        return energy(x)

    target = term(counted, kind="energy", event_shape=2)
    save = base.Checkpoint.save

    def run(sampler: MCMC, checkpoint: Path | None, seed: int = seed) -> Draw:
        return sample(target, chains=4, sampler=sampler, dtype=dtype, seed=seed, checkpoint=checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.Checkpoint, "save", lambda self, make, force=False: save(self, make, True))
        whole = run(alone or sampler, None)
        total, calls, last = calls, 0, share * calls
        with pytest.raises(Killed):
            run(sampler, file)
        if after_death is not None:
            after_death()
        calls, last = 0, math.inf
        resumed = run(sampler, file)
    assert calls < total, "the run began anew"
    return Interrupted(whole, resumed, lambda seed: run(sampler, file, seed))


def assert_same_run(left: Draw, right: Draw) -> None:
    """Draws, statistics and the report of two runs are equal, but for the time they took."""
    assert isinstance(left.x, Tensor)
    assert isinstance(right.x, Tensor)
    assert torch.equal(left.x, right.x)
    assert left.stats.keys() == right.stats.keys()
    assert all(torch.equal(left.stats[name], value) for name, value in right.stats.items())
    for field in ("acceptance", "divergences", "evaluations", "step_size", "ess"):
        assert getattr(left.info, field) == getattr(right.info, field), field
    for name in left.info.extra.keys() | right.info.extra.keys():
        assert name == "compile" or left.info.extra[name] == right.info.extra[name], name
    assert (left.log_z, left.log_z_se) == (right.log_z, right.log_z_se)
