"""MCMC on a log-density of your own, and your own loop over a kernel.

Run it: python examples/mcmc.py
"""

import torch

import boltzmix as bm


def log_density(x: torch.Tensor) -> torch.Tensor:
    """A ring of radius 2, unnormalised; rows in, one number per row out."""
    return -2 * (x.norm(dim=1) - 2) ** 2


ring = bm.term(log_density, kind="log_prob", event_shape=(2,))

# Chains of NUTS, with step size and mass adapted during warm-up.
draw = bm.sample(ring, chains=16, sampler=bm.MCMC(warmup=200, draws=200), seed=0)
print(draw.summary())
print(f"R-hat {float(bm.rhat(draw.x).max()):.3f}, effective draws {float(bm.ess(draw.x).min()):.0f}")
assert draw.x.mean((0, 1)).abs().max() < 0.2

# The loop is public: a kernel, tuned by a warm-up or by hand, a flat target, and three lines.
target, generator = bm.ravel(ring), torch.Generator().manual_seed(0)
start = torch.randn(500, 2, generator=generator)
kernel = bm.window_adaptation(bm.MALA(), target, start, warmup=200, seed=0)
state = kernel.init(target, start)
for _ in range(500):
    state, info = kernel.step(target, state, kernel.tune(), kernel.noise(state, generator))
print(f"MALA by hand: acceptance {info.acceptance.mean():.2f}, mean radius {state.x.norm(dim=1).mean():.2f}")

# Without chains=, a static density is drawn by SMC, which also says what it integrates to.
cloud = bm.sample(ring, 2000, seed=0)
print(f"log Z {cloud.log_z:.3f} ± {cloud.log_z_se:.3f}, exactly 2.757")
assert abs(cloud.log_z - 2.757) < 0.1
