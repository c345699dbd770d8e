"""The product of two diffusion models that were trained apart, and what the usual shortcut makes of it.

Run it: python examples/product_of_diffusions.py
"""

import warnings

import torch

import boltzmix as bm

circle, bar = bm.models.load("circle"), bm.models.load("bar")

# Eight blobs on a circle, times a bar that holds two of them.
draw = bm.sample(circle * bar, 1000, seed=0)
print(draw.summary())

# Reverse diffusion on the sum of the two scores costs as much and follows another density: it warns, and so do we.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", bm.SamplingWarning)
    shortcut = bm.sample(circle * bar, 1000, sampler=bm.Reverse(steps=30), seed=0)


def near_a_blob(x: torch.Tensor) -> float:
    """Share of draws within three standard deviations of the two blobs inside the bar."""
    blobs = torch.tensor([[0.0, 0.5], [0.0, -0.5]])
    return float((torch.cdist(x, blobs).min(1).values < 0.09).float().mean())


print(
    f"draws on the two blobs of the product: {near_a_blob(draw.x):.0%} by SMC, {near_a_blob(shortcut.x):.0%} by Reverse"
)
assert near_a_blob(draw.x) > 0.95
