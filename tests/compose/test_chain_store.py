"""Draws of chains in memory and in files: the same numbers, also of a run that was killed, thinned or large."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC, MALA
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import MCMC
from boltzmix.compose.samplers.store import Store
from tests.interruption import assert_same_run, interrupt

P = Gaussian(torch.zeros(3), torch.tensor([0.1, 1.0, 10.0]))
NAMED = Gaussian(torch.zeros(2), 1.0).on("a") * Gaussian(torch.zeros(3, 2), 2.0).on("b")


def test_files_hold_what_memory_would(tmp_path):
    settings = {"kernel": HMC(num_leapfrog=3), "warmup": 60, "draws": 150, "thin": 2}
    inside = sample(NAMED, chains=5, sampler=MCMC(**settings), seed=0)
    outside = sample(NAMED, chains=5, sampler=MCMC(**settings, out=tmp_path), seed=0)
    names = {f.name for f in tmp_path.iterdir()}
    assert names == {f"draws.{n}.npy" for n in ("a", "b")} | {f"stats.{n}.npy" for n in inside.stats}
    for name, values in inside.x.items():
        assert values.shape == (5, 150, *NAMED.variables[name].shape)
        assert torch.equal(outside.x[name], values)
        assert np.array_equal(np.load(tmp_path / f"draws.{name}.npy"), values.numpy())
    for name, values in inside.stats.items():
        assert torch.equal(outside.stats[name], values)
    assert inside.info.ess == outside.info.ess


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("out", [False, True], ids=["in memory", "in files"])
def test_a_killed_run_goes_on_bit_for_bit(out, share, tmp_path):
    def unfinished():
        assert not list(tmp_path.glob("draws/*.npy"))

    alone = MCMC(HMC(num_leapfrog=2), warmup=120, draws=200, thin=3)
    sampler = replace(alone, out=tmp_path / "draws") if out else alone
    file = tmp_path / "run"
    found = interrupt(lambda x: (x**4).sum(-1), sampler, share, file, seed=1, alone=alone, after_death=unfinished)
    assert_same_run(found.resumed, found.whole)


def test_files_of_an_interrupted_run_that_are_gone_are_missed(tmp_path):
    store = Store(2, 10, tmp_path)
    store.write(0, {"draws": torch.ones(2, 4, 3)})
    store.snapshot(4)
    (tmp_path / "draws.npy.partial").unlink()
    with pytest.raises(ValueError, match=r"draws\.npy\.partial.*cannot be read"):
        Store(2, 10, tmp_path).restore({}, ["draws"])


def test_files_of_another_run_are_refused(tmp_path):
    store = Store(2, 10, tmp_path)
    store.write(0, {"draws": torch.ones(2, 4, 3)})
    store.snapshot(4)
    with pytest.raises(ValueError, match=r"holds \(2, 10\) draws"):
        Store(3, 10, tmp_path).restore({}, ["draws"])


def test_ten_thousand_chains():
    """Moments of 10,000 chains after 60 transitions and 4 kept draws; |z| < 4.5 on six statistics of the last one."""
    with warnings.catch_warnings(action="ignore", category=SamplingWarning):  # four draws say little of convergence
        draw = sample(P, chains=10_000, sampler=MCMC(MALA(), warmup=100, draws=4, thin=20), seed=2)
    assert draw.x.shape == (10_000, 4, 3)
    last, variances = draw.x[:, -1].double(), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    z = torch.cat(
        [last.mean(0) / (variances / 10_000).sqrt(), (last.square().mean(0) / variances - 1) * math.sqrt(10_000 / 2)]
    )
    assert float(z.abs().max()) < 4.5
