r"""What every term must satisfy, whatever it is made of. A term joins in one line::

    TERMS = {"gaussian": Contract(lambda: Gaussian(torch.zeros(2, dtype=torch.float64), 1.0))}

    @pytest.mark.parametrize(("check", "contract"), contract_cases(TERMS))
    def test_contract(check, contract):
        check(contract)

``check_term(term)`` runs all the checks that apply, without pytest. A check is a function of a :class:`Contract` that
raises AssertionError; which of them apply follows from the term's flags, so a flag that is wrong makes a check fail.

Statistical checks use a fixed seed and refuse |z| > 5: at most 200 numbers are compared in one check, so that a correct
term fails with probability below 200 · 6e-7 ≈ 1.2e-4 for a new seed.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable, map_state

Z_LIMIT = 5.0
INVALID_LEVELS = (-0.5, math.nan, math.inf)


@dataclass(frozen=True)
class Contract:
    """A term with what its checks need to know.

    Args:
        make: builds the term; called once for each check, so that none sees another's leftovers.
        levels: noise levels to check at, None for the data end.
        span: half-width around ``centre`` that holds the data end's mass and the points that are evaluated.
        centre: of the mass, a number for all coordinates.
        dtype: of the states.
        rows: number of points.
        smooth: False where the energy jumps or kinks at the data end (a box): integrals of its gradient are then not
            compared with its differences there.
        tolerance: relative, of two ways to compute one number; by default 1e-7 in float64 and 2e-3 in float32.
        coarse: False where static factors, or a constraint, keep the term from its coarse form at large σ.
        hessian: False for terms whose score cannot be differentiated.
        convertible: False for terms that ``.to(dtype)`` does not reach into (torch.distributions).
    """

    make: Callable[[], Term]
    levels: tuple[float | None, ...] = (None, 0.3, 2.0)
    span: float = 4.0
    centre: float = 0.0
    dtype: torch.dtype = torch.float64
    rows: int = 12
    smooth: bool = True
    tolerance: float | None = None
    coarse: bool = True
    hessian: bool = True
    convertible: bool = True
    seed: int = 0

    @property
    def rtol(self) -> float:
        """Relative tolerance."""
        if self.tolerance is not None:
            return self.tolerance
        return 1e-7 if self.dtype == torch.float64 else 2e-3

    def points(self, term: Term, rows: int | None = None, scale: float = 0.5):
        """Random points around the mass, shaped like the term's states."""
        rng = torch.Generator().manual_seed(self.seed)

        def draw(variable: Variable) -> torch.Tensor:
            noise = torch.randn(rows or self.rows, *variable.shape, generator=rng, dtype=torch.float64)
            return (self.centre + scale * self.span * noise).to(self.dtype)

        variables = term.variables
        return draw(variables) if isinstance(variables, Variable) else {n: draw(v) for n, v in variables.items()}

    def used_levels(self, term: Term) -> list[float | None]:
        """The levels, one of them for terms that ignore σ."""
        return [None] if term.path == "static" else list(self.levels)


def tensors(x) -> list[torch.Tensor]:
    """The tensors of a state."""
    return list(x.values()) if isinstance(x, Mapping) else [x]


def flat(x) -> torch.Tensor:
    """A state as ``(N, D)``."""
    return torch.cat([t.reshape(t.shape[0], -1) for t in tensors(x)], dim=1)


def rows_of(x, rows):
    """Some rows of a state."""
    return map_state(lambda t: t[rows], x)


def assert_close(left, right, rtol: float, what: str, atol: float | None = None) -> None:
    """Equal within ``rtol`` of the larger number (and ``atol``, by default rtol), infinities and NaN alike."""
    left, right = torch.as_tensor(left).detach().double(), torch.as_tensor(right).detach().double()
    assert left.shape == right.shape, f"{what}: shapes {tuple(left.shape)} and {tuple(right.shape)}"
    finite = torch.isfinite(left) & torch.isfinite(right)
    same = torch.where(finite, False, (left == right) | (torch.isnan(left) & torch.isnan(right)))
    bound = (rtol if atol is None else atol) + rtol * torch.maximum(left.abs(), right.abs())
    good = same | (finite & ((left - right).abs() <= bound))
    assert bool(good.all()), (
        f"{what}: {left[~good].flatten()[:4].tolist()} against {right[~good].flatten()[:4].tolist()} (rtol {rtol:g})"
    )


def assert_states_close(left, right, rtol: float, what: str, atol: float | None = None) -> None:
    """``assert_close`` for every variable."""
    if isinstance(left, Mapping):
        assert set(left) == set(right), f"{what}: variables {sorted(left)} and {sorted(right)}"
        for name in left:
            assert_close(left[name], right[name], rtol, f"{what}[{name}]", atol)
    else:
        assert_close(left, right, rtol, what, atol)


def gradient_of_energy(term: Term, x, sigma):
    """−∂E/∂x by autograd through the public energy; zero where E is constant."""
    leaf = map_state(lambda t: t.detach().clone().requires_grad_(), x)
    energy = term.energy(leaf, sigma)
    if not energy.requires_grad:
        return map_state(torch.zeros_like, x)
    grads = torch.autograd.grad(energy[torch.isfinite(energy)].sum(), tensors(leaf), allow_unused=True)
    found = [torch.zeros_like(t) if g is None else -g for t, g in zip(tensors(leaf), grads, strict=True)]
    return dict(zip(leaf, found, strict=True)) if isinstance(leaf, Mapping) else found[0]


def assert_z(z: torch.Tensor, what: str) -> None:
    """Every z-score is below the limit that the module's page states."""
    assert z.numel() <= 200, "state a false-positive rate for so many numbers"
    assert bool(torch.isfinite(z).all()), f"{what}: z-scores that are not finite"
    worst = float(z.abs().max())
    assert worst < Z_LIMIT, f"{what}: |z| = {worst:.1f}"


# ------------------------------------------------------------------------------------------------ checks of every term


def check_shapes(contract: Contract) -> None:
    """Energies (N,), scores like x, in x's dtype; x untouched; no graph unless someone needs one."""
    term = contract.make()
    x = contract.points(term)
    before = map_state(torch.clone, x)
    for sigma in contract.used_levels(term):
        score = term.score(x, sigma) if term.has_score else map_state(torch.zeros_like, x)
        for s, t in zip(tensors(score), tensors(x), strict=True):
            assert s.shape == t.shape
            assert s.dtype == t.dtype
        if term.has_energy:
            energy = term.energy(x, sigma)
            assert energy.shape == (contract.rows,)
            assert energy.dtype == contract.dtype
        with torch.no_grad():
            assert not any(s.requires_grad for s in tensors(term.score(x, sigma)))
    for t, b in zip(tensors(x), tensors(before), strict=True):
        assert torch.equal(t, b)
        assert not t.requires_grad


def check_score_is_gradient(contract: Contract) -> None:
    """score == −autograd of energy."""
    term = contract.make()
    x = contract.points(term)
    for sigma in contract.used_levels(term):
        finite = torch.isfinite(term.energy(x, sigma))
        found, expected = term.score(x, sigma), gradient_of_energy(term, x, sigma)
        size = max(1.0, *(float(e[finite].abs().max()) for e in tensors(expected)))
        assert_states_close(
            rows_of(found, finite), rows_of(expected, finite), contract.rtol, f"score at {sigma}", contract.rtol * size
        )


def check_fused(contract: Contract) -> None:
    """energy_and_score gives what energy and score give."""
    term = contract.make()
    x = contract.points(term)
    for sigma in contract.used_levels(term):
        energy, score = term.energy_and_score(x, sigma)
        assert_close(energy, term.energy(x, sigma), contract.rtol, f"energy at {sigma}")
        assert_states_close(score, term.score(x, sigma), contract.rtol, f"score at {sigma}")


def check_rows(contract: Contract) -> None:
    """σ per row equals σ as a scalar, and a row does not depend on the others."""
    term = contract.make()
    x = contract.points(term)
    levels = [s for s in contract.used_levels(term) if s is not None] or [0.7]
    cycle = torch.tensor([levels[i % len(levels)] for i in range(contract.rows)], dtype=contract.dtype)
    together = term.score(x, cycle)
    energy = term.energy(x, cycle) if term.has_energy else None
    for level in levels:
        rows = (cycle == level).nonzero()[:, 0]
        part = rows_of(x, rows)
        assert_states_close(rows_of(together, rows), term.score(part, level), contract.rtol, "score per row")
        if energy is not None:
            assert_close(energy[rows], term.energy(part, level), contract.rtol, "energy per row")


def check_log_ratio(contract: Contract) -> None:
    """log_ratio(x, y) = E(x) − E(y), and both are the line integral of the score."""
    term = contract.make()
    x = contract.points(term)
    y = map_state(lambda t: t + 0.1 * contract.span * torch.cos(t), x)
    nodes, weights = (torch.from_numpy(a).to(contract.dtype) for a in np.polynomial.legendre.leggauss(24))
    for sigma in contract.used_levels(term):
        total = torch.zeros(contract.rows, dtype=contract.dtype)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = map_state(lambda a, b, u=node: a + u * (b - a), x, y)
            products = map_state(lambda s, a, b: (s * (b - a)).flatten(1).sum(1), term.score(point, sigma), x, y)
            total = total + weight * sum(tensors(products))
        found = term.log_ratio(x, y, sigma)
        assert found.shape == (contract.rows,)
        if term.has_energy:
            assert_close(found, term.energy(x, sigma) - term.energy(y, sigma), contract.rtol, f"log_ratio at {sigma}")
        if contract.smooth or sigma is not None:
            rtol = max(contract.rtol, 1e-3 if term.has_energy else 0.05)
            assert_close(found, total, rtol, f"log_ratio against the line integral at {sigma}", rtol)


def check_hessian(contract: Contract) -> None:
    """The score can be differentiated: models are trained through it. Central differences along one direction."""
    term = contract.make()
    x = contract.points(term)
    step = 1e-5 if contract.dtype == torch.float64 else 1e-2
    for sigma in contract.used_levels(term):
        if sigma is None and not contract.smooth:
            continue
        leaf = map_state(lambda t: t.detach().clone().requires_grad_(), x)
        score = term.score(leaf, sigma)
        direction = map_state(torch.cos, x)
        total = sum((s * d).sum() for s, d in zip(tensors(score), tensors(direction), strict=True))
        grads = (
            torch.autograd.grad(total, tensors(leaf), allow_unused=True)
            if total.requires_grad
            else [None] * len(tensors(x))
        )
        found = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors(x), grads, strict=True)]
        up = term.score(map_state(lambda t, d: t + step * d, x, direction), sigma)
        down = term.score(map_state(lambda t, d: t - step * d, x, direction), sigma)
        expected = map_state(lambda a, b: (a - b) / (2 * step), up, down)
        loose = max(1e-4, 30 * contract.rtol)
        for f, e in zip(found, tensors(expected), strict=True):
            assert_close(f, e, loose, f"Hessian product at {sigma}", loose * max(1.0, float(e.detach().abs().max())))


def check_state(contract: Contract) -> None:
    """parameters() and state_dict() hold nothing twice, and a state can be loaded again."""
    term = contract.make()
    parameters = list(term.parameters())
    assert len({id(p) for p in parameters}) == len(parameters)
    state = term.state_dict(keep_vars=True)
    assert len({id(t) for t in state.values()}) == len(state), f"held twice: {sorted(state)}"
    assert {id(p) for p in parameters} <= {id(t) for t in state.values()}, "a parameter is missing from the state"
    other = contract.make()
    assert not other.load_state_dict(term.state_dict()).missing_keys


def check_copies(contract: Contract) -> None:
    """deepcopy and .to(dtype) give terms of the same values, and leave the original alone."""
    term = contract.make()
    x = contract.points(term)
    value = term.energy if term.has_energy else lambda *a: flat(term.score(*a))
    sigma = contract.used_levels(term)[-1]
    before = value(x, sigma).detach()
    clone = copy.deepcopy(term)
    again = clone.energy if term.has_energy else lambda *a: flat(clone.score(*a))
    assert_close(again(x, sigma), before, contract.rtol, "a deep copy")
    if contract.convertible:
        other = torch.float32 if contract.dtype == torch.float64 else torch.float64
        clone.to(other)
        moved = again(map_state(lambda t: t.to(other), x), sigma)
        assert moved.dtype == other
        assert_close(moved, before, 5e-3, f"in {other}")
        assert_close(value(x, sigma), before, 0.0, "the original after its copy was converted")


def check_leaves_networks_alone(contract: Contract) -> None:
    """Evaluating changes no mode, gradient, flag or value of what the user passed in."""
    term = contract.make()
    x = contract.points(term)
    term.train()
    flags = [m.training for m in term.modules()]
    wanted = [p.requires_grad for p in term.parameters()]
    values = [t.detach().clone() for t in (*term.parameters(), *term.buffers())]
    for sigma in contract.used_levels(term):
        term.score(x, sigma)
        if term.has_energy:
            term.energy_and_score(x, sigma)
    assert flags == [m.training for m in term.modules()]
    assert wanted == [p.requires_grad for p in term.parameters()]
    assert all(p.grad is None for p in term.parameters())
    for t, v in zip((*term.parameters(), *term.buffers()), values, strict=True):
        assert torch.equal(t.detach(), v)


def check_levels_are_checked(contract: Contract) -> None:
    """Levels that are negative, NaN, infinite or out of range are refused, as scalars and per row."""
    term = contract.make()
    x = contract.points(term)
    low, high = term.sigma_range
    bad = [*INVALID_LEVELS, *([low / 2] if low > 0 else []), *([high * 2] if math.isfinite(high) else [])]
    for level in bad:
        for sigma in (level, torch.full((contract.rows,), level, dtype=contract.dtype)):
            with pytest.raises(ValueError, match="noise levels"):
                term.score(x, sigma)


def check_static(contract: Contract) -> None:
    """A static term ignores σ, and says so of denoise and coarse."""
    term = contract.make()
    x = contract.points(term)
    assert_states_close(term.score(x, 1.3), term.score(x), 0.0, "a static score at two levels")
    with pytest.raises(TypeError, match="static"):
        term.denoise(x, 1.0)
    with pytest.raises(TypeError):
        term.coarse(1.0)


def check_annealed(contract: Contract) -> None:
    """An annealed path refuses denoise and says why."""
    term = contract.make()
    assert term.path_reason
    with pytest.raises(TypeError, match="annealed because") as caught:
        term.denoise(contract.points(term), 0.5)
    assert term.path_reason in str(caught.value)


def check_coarse(contract: Contract) -> None:
    """At a level that dwarfs the data, the term looks like its coarse form up to a constant."""
    term = contract.make()
    sigma = min(60.0 * contract.span, term.sigma_range[1])
    coarse = term.coarse(sigma).to(contract.dtype)
    x = coarse.sample(256, torch.Generator().manual_seed(contract.seed)).reshape(256, *term.event_shape)
    offset = coarse.energy(x.reshape(256, *coarse.event_shape)) - term.energy(x, sigma)
    spread = float(offset.detach().std())
    assert spread < 0.15, f"the coarse form is off by {spread:.2f} nats"


# ------------------------------------------------------------------------- checks of densities in one or two dimensions


def grid_of(contract: Contract, term: Term, sigma: float, count: int | None = None):
    """Cell centres ``(M, *event)`` over twice the span, widened by 8σ, and the volume of a cell."""
    size = math.prod(term.event_shape)
    count = count or {1: 8000, 2: 400}[size]
    half = 2 * contract.span + 8 * sigma
    axis = contract.centre + half * ((torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1)
    mesh = torch.stack(torch.meshgrid(*[axis] * size, indexing="ij"), dim=-1).reshape(-1, *term.event_shape)
    return mesh.to(contract.dtype), (2 * half / count) ** size


def data_end(contract: Contract, term: Term):
    """A grid, its log-masses at the smallest level (None where that is the data end), and this level."""
    low = term.sigma_range[0]
    start = None if low == 0 else low
    mesh, cell = grid_of(contract, term, low)
    logs = -term.energy(mesh, start).double() + math.log(cell)
    return mesh.double().flatten(1), logs, low


def check_integral(contract: Contract) -> None:
    """A normalised term integrates to one at every level."""
    term = contract.make()
    for sigma in contract.used_levels(term):
        mesh, cell = grid_of(contract, term, sigma or 0.0)
        total = float((-term.energy(mesh, sigma).double()).exp().sum()) * cell
        assert abs(total - 1) < 2e-3, f"integrates to {total:.5f} at sigma={sigma}"


def check_convolution(contract: Contract) -> None:
    """p(x; σ) is the density of x_0 + σ ε, by quadrature; up to a constant where it is not normalised."""
    term = contract.make()
    mesh, logs, low = data_end(contract, term)
    x = contract.points(term)
    for sigma in [s for s in contract.used_levels(term) if s is not None and s > max(low, 0.02 * contract.span)]:
        variance = sigma**2 - low**2
        gap = torch.cdist(x.double().flatten(1), mesh) ** 2
        exact = (logs - 0.5 * gap / variance).logsumexp(1) - 0.5 * mesh.shape[1] * math.log(2 * math.pi * variance)
        offset = -term.energy(x, sigma).double() - exact
        if not term.normalized:
            offset = offset - offset.mean()
        # the midpoint rule across a jump errs by (cell · slope)² / 24
        rtol = 2e-3 if contract.smooth else 1e-2
        assert_close(offset, torch.zeros_like(offset), rtol, f"log p(x; {sigma}) − log of the convolution")


def check_denoise(contract: Contract) -> None:
    """denoise is the posterior mean E[x_0 | x_σ = x], by quadrature."""
    term = contract.make()
    mesh, logs, low = data_end(contract, term)
    if low > 0:
        return
    x = contract.points(term)
    for sigma in [s for s in contract.used_levels(term) if s is not None and s > 0.02 * contract.span]:
        weights = (logs - 0.5 * torch.cdist(x.double().flatten(1), mesh) ** 2 / sigma**2).softmax(1)
        assert_close(
            term.denoise(x, sigma).flatten(1), weights @ mesh, 5e-3, f"denoise at {sigma}", 2e-3 * contract.span
        )


def check_samples(contract: Contract) -> None:
    """Exact draws have the density's moments: z-scores of x, x², cos and sin against the grid."""
    term = contract.make()
    draws = flat(term.sample(20_000, torch.Generator().manual_seed(contract.seed))).double()
    mesh, logs, _ = data_end(contract, term)
    weights = logs.softmax(0)

    def features(p: torch.Tensor) -> torch.Tensor:
        k = 2.0 / contract.span
        columns = [p, p**2, torch.cos(k * p), torch.sin(3 * k * p), p.prod(1, keepdim=True)]
        return torch.cat(columns, dim=1)

    expected, found = weights @ features(mesh), features(draws)
    z = (found.mean(0) - expected) / (found.std(0) / math.sqrt(len(draws)) + 1e-4 * contract.span)
    assert_z(z, "features of exact draws")


# --------------------------------------------------------------------------------- the same in any dimension, by draws


def check_convolution_by_draws(contract: Contract) -> None:
    """p(x; σ) = E N(x; x_0, σ² I) over exact draws x_0: z-scores at points that the noised draws reach."""
    term = contract.make()
    rng = torch.Generator().manual_seed(contract.seed)
    draws = flat(term.sample(40_000, rng)).double()
    for sigma in [s for s in contract.used_levels(term) if s is not None and s >= 0.2 * contract.span]:
        state = term.sample(contract.rows, rng)
        x = map_state(lambda t, s=sigma: t + s * torch.randn(t.shape, generator=rng, dtype=torch.float64).to(t), state)
        size = draws.shape[1]
        logs = -0.5 * torch.cdist(flat(x).double(), draws) ** 2 / sigma**2 - 0.5 * size * math.log(
            2 * math.pi * sigma**2
        )
        top = logs.amax(1, keepdim=True)
        values = (logs - top).exp()
        mean, error = values.mean(1), values.std(1) / math.sqrt(draws.shape[0])
        offset = -term.energy(x, sigma).double() - top[:, 0]
        if not term.normalized:
            offset = offset - (offset - mean.log()).mean()
        assert_z((offset.exp() - mean) / (error + 1e-4 * mean), f"density of noised draws at {sigma}")
        if term.path == "noised":
            weights = values / values.sum(1, keepdim=True)
            guess = weights @ draws
            spread = (
                (weights**2) @ draws**2 - 2 * guess * ((weights**2) @ draws) + guess**2 * (weights**2).sum(1)[:, None]
            )
            found = flat(term.denoise(x, sigma)).double()
            z = (found - guess) / (spread.clamp(min=0).sqrt() + 1e-4 * contract.span)
            assert_z(z.flatten()[:200], f"posterior mean of noised draws at {sigma}")


def check_stein(contract: Contract) -> None:
    """E[f'(x) + f(x) s(x)] = 0 for exact draws: the score belongs to the sampled density."""
    term = contract.make()
    state = term.sample(20_000, torch.Generator().manual_seed(contract.seed))
    x, score = flat(state).double(), flat(term.score(state)).double()
    k = 1.0 / contract.span
    terms = [score, torch.cos(k * x) * k + torch.sin(k * x) * score, -torch.sin(k * x) * k + torch.cos(k * x) * score]
    values = torch.cat(terms, dim=1)[:, :200]
    assert_z(values.mean(0) / (values.std(0) / math.sqrt(len(x)) + 1e-9), "Stein's identity of exact draws")


ALWAYS = (
    check_shapes,
    check_rows,
    check_log_ratio,
    check_state,
    check_copies,
    check_leaves_networks_alone,
    check_levels_are_checked,
)


def applicable(contract: Contract) -> list[Callable[[Contract], None]]:
    """The checks that a term's flags promise it passes."""
    term = contract.make()
    if not term.has_score:
        return [check_state]
    checks = list(ALWAYS)
    single = isinstance(term.variables, Variable)
    size = math.prod(term.event_shape) if single else 0
    if term.has_energy:
        checks += [check_score_is_gradient, check_fused]
    if contract.hessian:
        checks.append(check_hessian)
    wide = term.path != "static" and term.sigma_range[1] > 20 * contract.span
    if single and wide and contract.coarse and term.has_energy:
        checks.append(check_coarse)
    checks += [check_static] if term.path == "static" else []
    checks += [check_annealed] if term.path == "annealed" else []
    if single and size <= 2 and term.has_energy:
        checks += [check_integral] if term.normalized else []
        checks += [check_convolution, check_denoise] if term.path == "noised" else []
        checks += [check_samples] if term.samplable else []
    if term.samplable:
        checks += [check_convolution_by_draws] if term.path == "noised" and term.has_energy else []
        checks += [check_stein] if contract.smooth else []
    return checks


def contract_cases(contracts: Mapping[str, Contract]) -> list:
    """pytest parameters (check, contract) for every term and every check that applies to it."""
    return [
        pytest.param(check, contract, id=f"{name}-{check.__name__.removeprefix('check_')}")
        for name, contract in contracts.items()
        for check in applicable(contract)
    ]


def check_term(term: Term, **options: object) -> None:
    """Every check that applies to one term; options are those of :class:`Contract`."""
    contract = Contract(lambda: copy.deepcopy(term), **options)
    for check in applicable(contract):
        check(contract)


def standard_normal(size: int, dtype: torch.dtype = torch.float64) -> Gaussian:
    """N(0, I) in ``size`` dimensions: what most tests compose with."""
    return Gaussian(torch.zeros(size, dtype=dtype), 1.0)
