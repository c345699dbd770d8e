"""Inpainting and outpainting a picture so that the unseen half has the distribution that the seen half implies.

Needs scikit-learn, which brings the digits: pip install "boltzmix[digits]"

Run it: python examples/inpaint.py [picture.png]
"""

import sys
import warnings

import torch

import boltzmix as bm

# In two dimensions the answer is known: of N(0, [[1, .9], [.9, 1]]) given x_1 = 1.5, x_2 is N(1.35, 0.19).
p = bm.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
seen = bm.Clamp(torch.tensor([True, False]), torch.tensor([1.5, 0.0]))
exact = bm.Twisted(steps=40, reference="density")  # energies are known, so no error of discretisation is left
draw = bm.sample(p * seen, 2000, sampler=exact, seed=0)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says itself that it replaces where it should condition
    shortcut = bm.sample(p * seen, 2000, sampler=bm.Reverse(steps=40), seed=0)
for name, x in (("Twisted", draw.x[:, 1]), ("Reverse, replacement", shortcut.x[:, 1])):
    print(f"{name:>21}: x_2 has mean {float(x.mean()):.2f} and variance {float(x.var()):.2f}; exact are 1.35 and 0.19")

# Pictures: the upper half is given (inpainting), or the middle (outpainting, the same with another mask). Two pictures
# at once: each has a population of its own, within which weights and resampling stay.
digits, classifier = bm.models.load("digits"), bm.models.load("digits-classifier")
images, labels = bm.models.data.digits("test")
images, labels, population = images[:2], labels[:2], 4
upper, middle = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
upper[:, :4] = True
middle[:, 2:6, 2:6] = True
sheets = []
for name, mask in (("inpainting", upper), ("outpainting", middle)):
    formula = digits * bm.Clamp(mask, images.repeat_interleave(population, 0))
    draw = bm.sample(formula, len(images) * population, sampler=bm.Twisted(steps=12, population=population), seed=0)
    assert torch.equal(draw.x[:, mask], images.repeat_interleave(population, 0)[:, mask])
    print(f"{name}: true labels {labels.tolist()}, draws read {classifier.predict(draw.x).tolist()}")
    sheets.append(draw)
if len(sys.argv) > 1:
    sheets[0].plot(sys.argv[1], title="lower halves drawn", limits=(-1.0, 1.0))
    print("written to", sys.argv[1])
