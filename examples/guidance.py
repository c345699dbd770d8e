"""Guidance as a formula, for a network of the diffusers library.

The network here is untrained, so its pictures mean nothing; with your own pipeline's ``unet`` and ``scheduler`` the
same lines guide it. Needs diffusers: pip install "boltzmix[diffusers]"

Run it: python examples/guidance.py
"""

import sys
import warnings

import torch

import boltzmix as bm

try:
    from diffusers import DDPMScheduler, UNet2DModel
except ImportError:
    sys.exit('this example needs diffusers: pip install "boltzmix[diffusers]"')

warnings.simplefilter("ignore", bm.SamplingWarning)  # both samplers say why they are biased; keep this out of your code

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    num_class_embeds=11,
)
p = bm.term(unet, schedule=DDPMScheduler(), null_label=10)

# p(x) (p(x|3)/p(x))^4 (p(x|5)/p(x))^4: three conditions of one network, evaluated in one forward pass
three, five = p.given(label=3), p.given(label=5)
formula = p * (three / p) ** 4 * (five / p) ** 4
print("exponents of the merged product:", dict(zip(["p", "p|3", "p|5"], formula.exponents(), strict=True)))

# The network knows scores only: no Metropolis step and no weights. Reverse is the usual heuristic, and warns.
draw = bm.sample(formula, 4, sampler=bm.Reverse(steps=10, solver="ddim"), seed=0)
print(
    tuple(draw.x.shape), f"{draw.info.evaluations:.0f} evaluations, {draw.info.network_rows:.0f} network rows per draw"
)

# Corrected by unadjusted Hamiltonian steps at every level: less biased, not unbiased.
draw = bm.sample(formula, 4, sampler=bm.Annealed(levels=6, sweeps=1), seed=0)
print(tuple(draw.x.shape), f"{draw.info.evaluations:.0f} evaluations per draw by {draw.info.sampler}")
