"""MCMC on a log-density of your own, and your own loop over a kernel.

Run it: python examples/mcmc.py
"""

import torch

import boltzmix as bm
from boltzmix.compose.kernels import Tune


def log_density(x: torch.Tensor) -> torch.Tensor:
    """A banana in two dimensions, unnormalised; rows in, one number per row out."""
    return -0.5 * (x[:, 0] ** 2 / 4 + (x[:, 1] - 0.25 * x[:, 0] ** 2) ** 2)


banana = bm.term(log_density, kind="log_prob", event_shape=(2,))

# Chains, with the step size adapted during warm-up.
draw = bm.sample(banana, chains=16, sampler=bm.MCMC(bm.HMC(num_leapfrog=8), warmup=200, draws=300), seed=0)
print(draw.summary())
print("R-hat", bm.rhat(draw.x).tolist(), "effective draws", bm.ess(draw.x).tolist())
mean = draw.x.double().mean((0, 1))
assert (mean - torch.tensor([0.0, 1.0])).abs().max() < 0.3

# The loop is public: a kernel, a flat target, and three lines.
target, kernel, generator = bm.ravel(banana), bm.MALA(), torch.Generator().manual_seed(0)
state, tune = kernel.init(target, torch.randn(500, 2, generator=generator)), Tune(torch.tensor(0.7))
for _ in range(500):
    state, info = kernel.step(target, state, tune, kernel.noise(state, generator))
print(f"MALA by hand: acceptance {info.acceptance.mean():.2f}, mean {state.x.mean(0).tolist()}")

# Without chains=, a static density is drawn by SMC, which also says what it integrates to.
cloud = bm.sample(banana, 2000, seed=0)
print(f"log Z {cloud.log_z:.3f} ± {cloud.log_z_se:.3f}, exactly {torch.tensor(4 * torch.pi).log():.3f}")
