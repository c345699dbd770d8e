"""A factor graph: terms over named variables, multiplied.

A chain a → b → c with a prior on a, two links, and an observation of c. Everything in it is Gaussian, so that the
answer is known; nothing in the formula depends on that.

Run it: python examples/factor_graph.py
"""

import math

import torch

import boltzmix as bm


def log_link(x: dict[str, torch.Tensor]) -> torch.Tensor:
    """log N(right | left, 1/2): a conditional, which integrates to one over its right end."""
    return -((x["right"] - x["left"]) ** 2).sum(-1) - 0.5 * math.log(math.pi)


link = bm.term(
    log_link, kind="log_prob", event_shape={"left": (1,), "right": (1,)}, normalized_over={"right"}, name="link"
)
prior, observed = bm.Gaussian(torch.zeros(1), 1.0), bm.Gaussian(torch.tensor([3.0]), 0.1)

graph = prior.on("a") * link.on("a", "b") * link.on("b", "c") * observed.on("c")
# A link is static and b has no prior of its own, so there is no noise level at which a path over all three could start:
# the geometric path, from a Gaussian fitted by a pilot run, needs none.
draw = bm.sample(graph, 4000, sampler=bm.SMC(path="geometric"), seed=0)
print(draw.summary())
for name in ("a", "b", "c"):
    print(f"{name}: mean {draw.x[name].mean():.2f}, standard deviation {draw.x[name].std():.2f}")

precision = torch.tensor([[1.0 + 2, -2, 0], [-2, 4, -2], [0, -2, 2 + 10]])
exact = torch.linalg.solve(precision, torch.tensor([0.0, 0.0, 30.0])).tolist()
print("exact means", [round(m, 2) for m in exact])
assert all(abs(float(draw.x[name].mean()) - m) < 0.1 for name, m in zip("abc", exact, strict=True))

# log Z is the evidence of what was observed: N(3; 0, 1 + 1/2 + 1/2 + 0.1)
evidence = -0.5 * (9 / 2.1 + math.log(2 * math.pi * 2.1))
print(f"log Z {draw.log_z:.3f} ± {draw.log_z_se:.3f}, exactly {evidence:.3f}")
assert abs(draw.log_z - evidence) < 5 * draw.log_z_se + 0.01
