"""Laws of invertible terms that the tests of the three flow families share."""

import math

import torch

from boltzmix.models.normal import log_standard_normal

D = torch.float64


def points(shape, n=4, seed=1, scale=1.0):
    return scale * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def shaken(model, seed=3, size=0.3):
    """In float64, with every parameter moved at random: the identity at the start would hide wrong formulas."""
    rng = torch.Generator().manual_seed(seed)
    model.to(D)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=rng, dtype=D))
    return model.eval()


def jacobian_log_det(fn, x):
    """log|det ∂fn/∂x| of each row by autograd."""
    size = x[0].numel()
    rows = []
    for row in x:
        matrix = torch.autograd.functional.jacobian(lambda t: fn(t[None])[0], row)
        rows.append(torch.linalg.slogdet(matrix.reshape(size, size))[1])
    return torch.stack(rows)


def assert_change_of_variables(model, x, rtol=1e-9):
    """log p(x) = log N(z; 0, I) + log|det ∂z/∂x|, z = encode(x), the determinant by autograd."""
    expected = log_standard_normal(model.encode(x)) + jacobian_log_det(model.encode, x)
    assert torch.allclose(model.log_prob(x), expected, rtol=rtol, atol=rtol)


def assert_round_trip(model, x, tolerance=1e-10):
    """decode(encode(x)) = x and encode(decode(z)) = z, within ``tolerance``; in float32 1e-5 of the scale."""
    with torch.no_grad():
        z = model.encode(x)
        assert float((model.decode(z) - x).abs().max()) < tolerance
        other = points((z.shape[1],), n=len(x), seed=9)
        assert float((model.encode(model.decode(other)) - other).abs().max()) < 100 * tolerance
        single = model.float()
        y = x.float()
        size = 1.0 if model.core.units.bounds is None else model.core.units.bounds[1]
        assert float((single.decode(single.encode(y)) - y).abs().max()) < 1e-5 * size
        model.to(D)


def assert_views_share_a_pass(model, x, watched, calls):
    """k labels in one forward of ``watched``; each equals its own evaluation."""
    from boltzmix.compose.term import evaluate

    views = [model, *(model.given(label=k) for k in range(3))]
    seen = []
    handle = watched.register_forward_hook(lambda *a: seen.append(1))
    with torch.no_grad():
        found = evaluate(views, x, None, energy=True, score=True)
    handle.remove()
    assert len(seen) == calls
    for view in views:
        energy, score = found[view.key()]
        assert torch.allclose(energy, view.energy(x), atol=1e-9)
        assert torch.allclose(score, view.score(x), atol=1e-8)
    assert len({round(float(found[v.key()][0][0].detach()), 9) for v in views}) == 4, "labels change nothing"
    mixed = model.given(label=torch.arange(len(x)) % 3)
    rows = torch.stack([model.given(label=i % 3).energy(x)[i] for i in range(len(x))])
    assert torch.allclose(mixed.energy(x), rows, atol=1e-9)
    leaf = x.clone().requires_grad_()
    together = evaluate(views, leaf, None, energy=True, score=True)
    (whole,) = torch.autograd.grad(sum(e.sum() for e, _ in together.values()), leaf)
    assert torch.allclose(-whole, sum(s for _, s in together.values()), atol=1e-8)


def mass(term, low, high, count):
    """The integral of exp(−E) over a square, by the midpoint rule."""
    axis = low + (high - low) * (torch.arange(count, dtype=D) + 0.5) / count
    grid = torch.cartesian_prod(axis, axis)
    own = next(p for p in term.parameters()).dtype
    with torch.no_grad():
        energy = torch.cat([term.energy(rows.to(own)).double() for rows in grid.split(1 << 16)])
    return float((-energy).exp().sum()) * ((high - low) / count) ** 2, energy, grid


def entropy_of_draws_agrees(term, low, high, count=300, n=20_000):
    """E[−log p] over exact draws equals the grid's entropy: a z-score, below 3.9 with probability 1 − 1e-4."""
    total, energy, _ = mass(term, low, high, count)
    assert abs(total - 1) < 1e-3, f"integrates to {total:.5f}"
    cell = ((high - low) / count) ** 2
    entropy = float(((-energy).exp() * energy).sum()) * cell
    with torch.no_grad():
        drawn = term.energy(term.sample(n, torch.Generator().manual_seed(0))).double()
    z = (float(drawn.mean()) - entropy) / float(drawn.std() / math.sqrt(n))
    assert abs(z) < 3.9, f"z = {z:.1f}"
