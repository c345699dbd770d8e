r"""What every kernel must satisfy. A kernel joins in one line::

    KERNELS = {"HMC": KernelContract(lambda dim: HMC(step_size=0.4, num_leapfrog=4))}

    @pytest.mark.parametrize(("check", "contract"), kernel_cases(KERNELS))
    def test_kernel(check, contract):
        check(contract)

A check is a function of a :class:`KernelContract` that raises AssertionError; which of them apply follows from the
contract's flags and from the kernel.

Statistics start from exact draws of targets whose distribution functions are known, so that after any number of
transitions their values are uniform: means, variances and Kolmogorov-Smirnov distances of these are compared with their
law. Reversible kernels leave the pair (x, x') exchangeable. Parameters drawn from their prior and moved on the
posterior given data of their own still follow the prior: Geweke (2004), *Getting it right*; in a chain that is run both
ways from them, their ranks are uniform: Besag and Clifford (1989), *Generalized Monte Carlo significance tests*; Talts
et al. (2018), *Validating Bayesian inference algorithms with simulation-based calibration*. Every check shares
``FALSE_POSITIVES`` among its statistics (Bonferroni, by their asymptotic laws): a kernel that is right fails it with
that probability for a new seed.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist

import pytest
import torch

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.kernels import Dense, Diagonal, Kernel, LowRank, Noise
from tests.kernel_targets import (
    Banana,
    Bare,
    Counted,
    Edge,
    Gumbel,
    Plain,
    Plateau,
    Posterior,
    Quartic,
    Scales,
    normals,
)

FALSE_POSITIVES = 1e-4


@dataclass(frozen=True)
class KernelContract:
    """A kernel with what its checks need to know.

    Args:
        make: builds the kernel for a dimension, with a step size that suits targets of unit scale: exact kernels
            should refuse between a few and 90 per cent of their proposals in the checks, or errors in how they
            decide could not be seen.
        reversible: whether a transition from fresh momenta leaves (x, x') exchangeable; False for kernels that
            keep a momentum.
        rowwise: whether a chain's transition depends on its own row of the noise only; False for kernels that draw
            as they go.
        shared: whether chains share random numbers (a trajectory's length): they are then exact and reversible given
            these, but not independent, as counts of ranks must be.
        sized: whether ``tune.step_size`` and ``tune.inverse_mass`` mean anything.
        steps: transitions in the statistical checks.
        chains: chains in these.
        bias: for unadjusted kernels, the stationary variance on N(0, v I), v ↦ variance.
        bias_dim: dimension of that Gaussian.
        bias_steps: transitions until it is reached.
        slack: how much the formula for the bias may itself be off, relative.
        skip: checks that do not apply, by name without ``check_``, and why.
    """

    make: Callable[[int], Kernel]
    reversible: bool = True
    rowwise: bool = True
    shared: bool = False
    sized: bool = True
    steps: int = 12
    chains: int = 20_000
    bias: Callable[[float], float] | None = None
    bias_dim: int = 1
    bias_steps: int = 60
    slack: float = 0.0
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether the kernel leaves its target invariant."""
        return self.bias is None


# ---------------------------------------------------------------------------------------------------------- statistics


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def bound(statistics):
    """|z| that one of so many statistics exceeds with probability FALSE_POSITIVES."""
    return NormalDist().inv_cdf(1 - FALSE_POSITIVES / (2 * statistics))


def assert_z(z, what):
    """No z-score is beyond the bound for so many."""
    z = torch.as_tensor(z).flatten()
    assert bool(torch.isfinite(z).all()), f"{what}: z-scores that are not finite"
    worst = float(z.abs().max())
    assert worst < bound(len(z)), f"{what}: |z| = {worst:.1f}, beyond {bound(len(z)):.1f}"


def assert_uniform(u, what):
    """Columns of independent rows are uniform: by mean, variance and the Kolmogorov-Smirnov distance."""
    n, k = u.shape
    assert bool(((u >= 0) & (u <= 1)).all()), f"{what}: draws where the target has no mass"
    z = torch.cat([(u.mean(0) - 0.5) * math.sqrt(12 * n), (((u - 0.5) ** 2).mean(0) - 1 / 12) * math.sqrt(180 * n)])
    distance = u.sort(0).values - (torch.arange(n, dtype=u.dtype)[:, None] + 0.5) / n
    ks = (distance.abs().amax(0) + 0.5 / n) * math.sqrt(n)
    limit = math.sqrt(-0.5 * math.log(FALSE_POSITIVES / (6 * k)))  # 2 exp(−2 d²) = FALSE_POSITIVES / 3k
    worst = float(z.abs().max())
    assert worst < bound(3 * k), f"{what}: |z| = {worst:.1f}, beyond {bound(3 * k):.1f}"
    assert float(ks.max()) < limit, f"{what}: √n D = {float(ks.max()):.2f}, beyond {limit:.2f}"


def assert_counts(counts, what):
    """Counts ``(K, bins)`` are even, by χ²."""
    expected = counts.sum(1, keepdim=True) / counts.shape[1]
    chi2 = ((counts - expected) ** 2 / expected).sum(1)
    tail = torch.special.gammaincc(torch.full_like(chi2, (counts.shape[1] - 1) / 2), chi2 / 2)
    least = float(tail.min()) * len(chi2)
    assert least > FALSE_POSITIVES, f"{what}: p = {least:.1g} after Bonferroni; counts {counts.tolist()}"


def march(kernel, target, x, steps, source, tune=None):
    """The public loop: the state, mean acceptance, and divergences."""
    state = kernel.init(target, x, source)
    tune, acceptance, divergences = tune or kernel.tune(x), 0.0, 0
    for _ in range(steps):
        state, info = kernel.step(target, state, tune, kernel.noise(state, source))
        acceptance += float(info.acceptance.mean()) / steps
        divergences += int(info.divergent.sum())
    return state, acceptance, divergences


def rows_of(noise: Noise, rows):
    """The noise of some chains."""
    found = {f.name: getattr(noise, f.name) for f in fields(noise)}
    return replace(noise, **{k: v[rows] for k, v in found.items() if isinstance(v, torch.Tensor)})


# -------------------------------------------------------------------------------------------- checks of exact kernels


def check_stationary(contract: KernelContract, targets=(Scales, Banana, Gumbel)) -> None:
    """Exact draws stay exact, chains move, and enough is refused for the decision to matter."""
    refused = []
    for number, kind in enumerate(targets):
        target, source = kind(), seeded(number)
        kernel, start = contract.make(target.dim), target.draw(contract.chains, source)
        state, acceptance, divergences = march(kernel, target, start, contract.steps, source)
        assert divergences < 0.01 * contract.chains * contract.steps, "energies are finite everywhere"
        still = float((state.x == start).all(1).double().mean())
        assert still < 0.5, f"{still:.0%} of the chains never moved"
        refused.append(1 - acceptance)
        assert_uniform(target.uniforms(state.x), f"{type(target).__name__} after {contract.steps} transitions")
    assert max(refused) > 0.05 or not contract.sized, "hardly anything is refused: take larger steps"


def check_forgets_its_start(contract: KernelContract) -> None:
    """Chains from one point become draws of the target."""
    target, source = Gumbel(), seeded(10)
    start = torch.full((2000, 3), 1.5, dtype=torch.float64)
    state, _, _ = march(contract.make(3), target, start, min(10 * contract.steps, 150), source)
    assert_uniform(target.uniforms(state.x), "chains from one point")


def features(u):
    """Functions of a state whose products tell the order of a pair."""
    a, b = u[:, 0], u[:, 1]
    return torch.stack([a, a * a, a * b, b, b**3, (a < 0.25).to(u), (b > 0.7).to(u), (a + b > 1.2).to(u)])


def check_reversible(contract: KernelContract, targets=(Banana, Gumbel)) -> None:
    """E f(x) g(x') = E g(x) f(x'): 28 pairs (f, g) for each of two targets."""
    z = []
    for number, kind in enumerate(targets):
        target, source = kind(), seeded(20 + number)
        x = target.draw(4 * contract.chains, source)
        state, _, _ = march(contract.make(target.dim), target, x, 1, source)
        before, after = features(target.uniforms(x)), features(target.uniforms(state.x))
        for i in range(8):
            for j in range(i):
                gap = before[i] * after[j] - before[j] * after[i]
                z.append(float(gap.mean() / gap.std()) * math.sqrt(len(x)))
    assert_z(torch.tensor(z), "pairs of states")


def check_geweke(contract: KernelContract) -> None:
    """Parameters that are moved given their data, and data drawn anew given them, keep their joint law."""
    source = seeded(30)
    x = Posterior.prior(contract.chains, source)
    kernel = contract.make(2)
    for _ in range(4):
        target = Posterior.given(x, source)
        x = march(kernel, target, x, max(1, contract.steps // 4), source)[0].x
    u = target.uniforms(x)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert_uniform(u, "parameters and data")
    bins = (20 * u).long().clamp(max=19)
    assert_counts(torch.stack([torch.bincount(b, minlength=20).double() for b in bins.unbind(1)]), "χ² in 20 bins")


def check_ranks(contract: KernelContract) -> None:
    """Simulation-based calibration: the parameters behind the data have uniform ranks in a chain through them.

    The chain runs both ways from them, a number of steps back that is uniform and the rest forwards, which for a
    reversible kernel makes them one draw among others however slowly it mixes. Ties, where it has not moved, are broken
    by chance.
    """
    source, length, n = seeded(40), 7, contract.chains // 2
    x = Posterior.prior(n, source)
    target, kernel = Posterior.given(x, source), contract.make(2)

    def quantities(at):
        return torch.cat([at, target.energy(at)[:, None]], 1)

    ways = []
    for _ in range(2):
        state, found = kernel.init(target, x, source), []
        for _ in range(length):
            for _ in range(2):
                state, _ = kernel.step(target, state, kernel.tune(x), kernel.noise(state, source))
            found.append(quantities(state.x))
        ways.append(torch.stack(found, 1))
    back = torch.randint(0, length + 1, (n,), generator=source)
    used = torch.arange(length) < back[:, None]
    others = torch.cat([ways[0], ways[1]], 1)
    # of the second way, the first length − back
    used = torch.cat([used, torch.arange(length) < (length - back)[:, None]], 1)[:, :, None]
    own = quantities(x)[:, None]
    below, ties = ((others < own) & used).sum(1), ((others == own) & used).sum(1)
    ranks = below + (torch.rand(below.shape, generator=source) * (ties + 1)).long()
    counts = [torch.bincount(r, minlength=length + 1).double() for r in ranks.unbind(1)]
    assert_counts(torch.stack(counts), "ranks of μ, log τ and the energy")


# ------------------------------------------------------------------------------------------ checks of unadjusted ones


def check_bias(contract: KernelContract) -> None:
    """On N(0, v I) the stationary variance is the one that the kernel states."""
    assert contract.bias is not None
    for seed, variance in ((50, 1.0), (51, 0.6)):
        source, d = seeded(seed), contract.bias_dim
        kernel, chains = contract.make(d), 4 * contract.chains // d
        target = Plain(d, variance)
        start = math.sqrt(contract.bias(variance)) * normals(chains, d, source)
        state, _, divergences = march(kernel, target, start, contract.bias_steps, source)
        assert divergences == 0
        found = float((state.x**2).mean()) / contract.bias(variance) - 1
        error = math.sqrt(2 / (chains * d))
        limit = bound(2) * error + contract.slack
        assert abs(found) < limit, f"variance off by {found:.4f} of its own, beyond {limit:.4f}"


# ----------------------------------------------------------------------------------------------- checks of all kernels


def check_edges(contract: KernelContract) -> None:
    """Infinite energies are rejections, undefined ones are counted too, and neither is ever entered."""
    for number, outside in enumerate((torch.inf, torch.nan, -torch.inf)):
        target, source = Edge(outside), seeded(60 + number)
        kernel = contract.make(2)
        if not kernel.adjusted and not math.isnan(outside):
            continue  # without energies, only undefined scores tell
        start = target.draw(contract.chains // 2, source)
        state, acceptance, divergences = march(kernel, target, start, contract.steps, source)
        assert bool((state.x[:, 0].abs() < 2).all()), "a chain left the support"
        assert 0.0 <= acceptance <= 1.0
        assert bool(torch.isfinite(state.energy).all()) or not kernel.adjusted
        assert bool(torch.isfinite(state.score).all()) or not kernel.uses_score
        few = 0.01 * len(start) * contract.steps  # trajectories may diverge by their energy error
        if outside == torch.inf:
            assert divergences < few, "energies of +inf are zero density, an ordinary rejection"
        if outside != torch.inf:
            assert divergences > (few if kernel.adjusted else 0), "undefined energies are counted"
        if contract.exact:
            assert_uniform(target.uniforms(state.x), f"with {outside} outside")


def check_decides_for_each_chain(contract: KernelContract) -> None:
    """Chains that are refused keep their state, others have the energy and score of where they are; nothing is changed
    in place."""
    target, kernel, source = Edge(torch.nan), contract.make(2), seeded(70)
    start = target.draw(400, source)
    state = kernel.init(target, start, source)
    for _ in range(4):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        after, info = kernel.step(target, state, kernel.tune(start), kernel.noise(state, source))
        for name, tensor in state.tensors().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
        for name in ("acceptance", "accepted", "divergent"):
            assert getattr(info, name).shape == (400,)
        assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all())
        for name in ("x", "energy", "score"):
            kept, old = getattr(after, name)[~info.accepted], before[name][~info.accepted]
            torch.testing.assert_close(kept, old, rtol=0, atol=0, equal_nan=True)
        energy, score = target.energy_and_score(after.x)
        if kernel.adjusted:
            torch.testing.assert_close(after.energy, energy)
        if kernel.uses_score:
            torch.testing.assert_close(after.score, score)
        else:
            assert bool(torch.isnan(after.score).all()), "scores that are not evaluated are NaN"
        state = after


def check_costs_what_it_says(contract: KernelContract) -> None:
    """Evaluations are those of the class, or of the info where chains differ; a bare target costs and gives the same.

    Kernels without use for scores ask for none where energies can be had alone.
    """
    found = []
    for kind in (Counted if contract.make(2).uses_score else Plateau, Bare):
        target, kernel = kind(Banana()), contract.make(2)
        start = Banana().draw(50, seeded(80))
        state = kernel.init(target, start, seeded(81))
        assert target.rows == 50
        source = seeded(82)
        for _ in range(3):
            target.rows = 0
            state, info = kernel.step(target, state, kernel.tune(start), kernel.noise(state, source))
            if info.num_leapfrog is None:
                assert target.rows == 50 * kernel.evaluations_per_step
            else:
                assert target.rows == int(info.num_leapfrog.sum())
        found.append(state.x)
    assert torch.equal(*found)


def check_dtypes(contract: KernelContract) -> None:
    """States keep the dtype of their start."""
    for dtype in (torch.float32, torch.float64):
        target, kernel = Gumbel(), contract.make(3)
        start = target.draw(20, seeded(90)).to(dtype)
        state, _, _ = march(kernel, target, start, 3, seeded(91))
        assert {tensor.dtype for tensor in state.tensors().values() if tensor.is_floating_point()} == {dtype}
        assert not torch.equal(state.x, start)


def check_reproducible(contract: KernelContract) -> None:
    """The generator decides everything; a state written to a file goes on bit for bit, in blocks of noise too."""
    target, kernel = Gumbel(), contract.make(3)
    start = target.draw(30, seeded(100))
    tune = kernel.tune(start)

    def run(steps, state=None, source=None):
        source = source or seeded(101)
        state = state or kernel.init(target, start, source)
        for at in range(0, steps, 2):
            noise = kernel.noise(state, source, 2)
            for k in range(2):
                state, _ = kernel.step(target, state, tune, noise[k])
            if isinstance(noise, Noise):
                assert not torch.equal(noise[0].normal, noise[1].normal), f"noise of transition {at} is used twice"
        return state, source

    whole, _ = run(8)
    torch.rand(7)  # the global generator has no say
    half, source = run(4)
    file = io.BytesIO()
    torch.save(half.tensors(), file)
    file.seek(0)
    resumed = kernel.init(target, start, seeded(102)).having(torch.load(file))
    again, _ = run(4, resumed, source)
    assert not torch.equal(whole.x, half.x)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)


def check_rows_are_chains(contract: KernelContract) -> None:
    """A chain alone does what it does in a batch, where others diverge, with a step size of its own."""
    target, kernel = Edge(torch.nan), contract.make(2)
    start = target.draw(40, seeded(110))
    state = kernel.init(target, start, seeded(111))
    noise = kernel.noise(state, seeded(112))
    tune = kernel.tune(start)
    if contract.sized:
        tune = replace(tune, step_size=tune.step_size * torch.linspace(0.3, 4.0, 40, dtype=torch.float64))
    together, info = kernel.step(target, state, tune, noise)
    assert 0 < int(info.divergent.sum()) < 40, "the check needs chains that diverge and others"
    for row in range(0, 40, 3):
        one = slice(row, row + 1)
        own = replace(tune, step_size=tune.step_size[row]) if contract.sized else tune
        alone, _ = kernel.step(target, state.select(torch.tensor([row])), own, rows_of(noise, one))
        for name, tensor in alone.tensors().items():
            torch.testing.assert_close(tensor, together.tensors()[name][one], equal_nan=True)


def masses():
    """One of each kind in three dimensions, with the covariance that it stands for."""
    double = torch.float64
    variances = torch.tensor([0.01, 1.0, 100.0], dtype=double)
    covariance = torch.tensor([[4.0, 1.5, 0.2], [1.5, 1.0, 0.1], [0.2, 0.1, 0.09]], dtype=double)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=double)
    basis = torch.linalg.qr(torch.tensor([[1.0, 0.3], [-0.5, 1.0], [0.7, 0.2]], dtype=double))[0]
    values = torch.tensor([20.0, 0.1], dtype=double)
    inner = torch.eye(3, dtype=double) + basis @ torch.diag(values - 1) @ basis.mT
    return (
        (Diagonal(variances), torch.diag(variances)),
        (Dense(covariance), covariance),
        (LowRank(scale**2, basis, values), scale[:, None] * inner * scale),
    )


def check_mass(contract: KernelContract) -> None:
    """In x = F z with the inverse mass F Fᵀ, a chain does what it does in z without one."""
    kernel = contract.make(3)
    start = normals(40, 3, seeded(120))
    expected, acceptance, _ = march(kernel, Quartic(), start, 5, seeded(121))
    assert acceptance < 0.9999
    for mass, covariance in masses():
        factor = mass.push(torch.eye(3, dtype=torch.float64)).mT
        torch.testing.assert_close(factor @ factor.mT, covariance)
        torch.testing.assert_close(mass.pull(start), start @ factor)
        tune = replace(kernel.tune(start), inverse_mass=mass)
        found, same, _ = march(kernel, Quartic(factor), start @ factor.mT, 5, seeded(121), tune)
        assert abs(same - acceptance) < 1e-6, f"acceptance {same:.6f} with {mass!r} and {acceptance:.6f} without"
        torch.testing.assert_close(found.x, expected.x @ factor.mT, rtol=1e-6, atol=1e-6)


def check_starts_are_checked(contract: KernelContract) -> None:
    """Starts without a finite energy and score are refused, and said where."""
    kernel = contract.make(2)
    for bad in (torch.nan, torch.inf, 5.0):
        start = torch.zeros(4, 2)
        start[2, 0] = bad
        with pytest.raises(NonFinite, match=r"1 of 4 starts.*row 2.*inside the support"):
            kernel.init(Edge(torch.nan), start)


EXACT = (check_stationary, check_forgets_its_start, check_geweke)
ALWAYS = (
    check_edges,
    check_decides_for_each_chain,
    check_costs_what_it_says,
    check_dtypes,
    check_reproducible,
    check_starts_are_checked,
)


def applicable(contract: KernelContract) -> list[Callable[[KernelContract], None]]:
    """The checks that a kernel's flags promise it passes."""
    checks: list[Callable[[KernelContract], None]] = list(ALWAYS)
    checks += EXACT if contract.exact else (check_bias,)
    checks += [check_reversible] if contract.exact and contract.reversible else []
    checks += [check_ranks] if contract.exact and contract.reversible and not contract.shared else []
    checks += [check_rows_are_chains] if contract.rowwise and not contract.shared else []
    checks += [check_mass] if contract.sized else []
    known = {check.__name__.removeprefix("check_"): check for check in checks}
    assert set(contract.skip) <= set(known), f"no such check: {set(contract.skip) - set(known)}"
    return [check for name, check in known.items() if name not in contract.skip]


def kernel_cases(contracts: Mapping[str, KernelContract]) -> list:
    """pytest parameters (check, contract) for every kernel and every check that applies to it."""
    return [
        pytest.param(check, contract, id=f"{name}-{check.__name__.removeprefix('check_')}")
        for name, contract in contracts.items()
        for check in applicable(contract)
    ]
