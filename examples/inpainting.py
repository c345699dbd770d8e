"""Completing real handwritten digits: the upper half is known, the lower half is drawn.

Needs scikit-learn, which brings the digits: pip install "boltzmix[digits]"

Run it: python examples/inpainting.py [picture.png]
"""

import sys

import torch

import boltzmix as bm

digits, classifier = bm.models.load("digits"), bm.models.load("digits-classifier")
images, labels = bm.models.data.digits("test")
images, labels = images[:12], labels[:12]

upper = torch.zeros(1, 8, 8, dtype=torch.bool)
upper[:, :4] = True

# One condition for each draw. Clamped pixels never move, so every completion has its real upper half.
formula = digits * bm.Clamp(upper, images)
draw = bm.sample(formula, len(images), sampler=bm.Annealed(levels=32, sweeps=1), seed=0)
assert torch.equal(draw.x[:, :, :4], images[:, :, :4])

print("true labels     ", labels.tolist())
print("completions read", classifier.predict(draw.x).tolist())
if len(sys.argv) > 1:
    draw.plot(sys.argv[1], title="lower halves drawn", limits=(-1.0, 1.0))
    print("written to", sys.argv[1])
