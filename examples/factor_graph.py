"""A factor graph: terms over named variables, multiplied.

A chain a — b — c, with a prior on a, two links, and an observation of c.

Run it: python examples/factor_graph.py
"""

import torch

import boltzmix as bm

prior = bm.Gaussian(torch.zeros(1), 1.0)
observed = bm.Gaussian(torch.tensor([3.0]), 0.1)


def link(x: torch.Tensor) -> torch.Tensor:
    """Neighbours are alike: log N(x_2 | x_1, 1/2), over pairs laid side by side."""
    return -((x["right"] - x["left"]) ** 2).sum(-1)


def log_link(first: str, second: str) -> bm.Term:
    """The link between two named variables."""
    variables = {"left": bm.Variable((1,)), "right": bm.Variable((1,))}
    return bm.term(link, kind="log_prob", variables=variables).on(first, second)


graph = prior.on("a") * log_link("a", "b") * log_link("b", "c") * observed.on("c")
draw = bm.sample(graph, 4000, seed=0)
print(draw.summary())
for name in ("a", "b", "c"):
    print(f"{name}: mean {draw.x[name].mean():.2f}, standard deviation {draw.x[name].std():.2f}")

# All Gaussian, so the answer is known: c given c ~ N(0, 2) before and N(3, 0.1) from the observation.
precision = torch.tensor([[1 + 2.0, -2, 0], [-2, 4, -2], [0, -2, 2 + 10]])
exact = torch.linalg.solve(precision, torch.tensor([0.0, 0.0, 30.0]))
print("exact means", [round(v, 2) for v in exact.tolist()])
assert all(abs(float(draw.x[n].mean()) - float(m)) < 0.1 for n, m in zip("abc", exact, strict=True))
