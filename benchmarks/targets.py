r"""Compositions whose answer is known: each task is a formula, exact draws of it, and its log Z.

Products of Gaussian mixtures are mixtures again (:mod:`boltzmix.compose.closed_form`); products with a uniform box are
sampled by rejection; anything else in one or two dimensions is summed on a grid. Exact draws never come from the
samplers that they judge.

The same factors come in three forms: as closed forms, which can be sampled (so that a sampler may start from exact
draws of one of them); as plain functions ``fn(x, sigma)``, which cannot, so that the noise path itself is tested; and
as counting twins of both, whose tally of rows is independent of what the sampler reports.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.metrics import Exact
from boltzmix.compose.box import Box
from boltzmix.compose.callables import term
from boltzmix.compose.closed_form import gaussian_product, mixture_product
from boltzmix.compose.constraints import bounded_negation
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.mixture import mixture
from boltzmix.compose.term import Term
from boltzmix.models.data import BAR, components

#: seeds of :func:`random_mixtures` whose product has at least four effective modes: the first three of each dimension
MIXTURE_SEEDS: dict[int, tuple[int, ...]] = {8: (4, 5, 6), 32: (2, 3, 6)}
#: standard deviation of the means of :func:`random_mixtures` in each dimension
MIXTURE_SPREAD = {8: 1.0, 32: 0.55}


class Tally:
    """Rows at which a factor was evaluated; the same rows at the same level twice in a row are one evaluation."""

    def __init__(self) -> None:
        """Start at zero."""
        self.rows = 0
        self._last: Any = None

    def __call__(self, x: Tensor, sigma: Tensor | None) -> None:
        """Record one call."""
        now = (x.data_ptr(), x.shape, x._version, None if sigma is None else sigma.tolist())
        if self._last is None or self._last[0] != now:
            self.rows += x.shape[0]
        self._last = now, x  # holding x keeps its memory from being taken by another


class CountedMixture(GaussianMixture):
    """A Gaussian mixture that tallies its evaluations."""

    tally: Tally

    @staticmethod
    def of(mixture: GaussianMixture, tally: Tally) -> "CountedMixture":
        """A counting twin."""
        twin = CountedMixture(mixture.means, mixture.covariances, mixture.weights)
        twin.tally = tally
        return twin

    def _log_components(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        if "tally" in self.__dict__:
            self.tally(x, sigma)
        return super()._log_components(x, sigma)


def as_function(density: Term, tally: Tally | None = None) -> Term:
    """A closed form behind a plain function ``fn(x, sigma)``: nothing to sample from, no form to exploit."""

    def energy(x: Tensor, sigma: Tensor) -> Tensor:
        if tally is not None:
            tally(x, sigma)
        return density._energy(x, sigma)

    return term(energy, kind="energy", event_shape=density.event_shape, path="noised", name=f"fn {density.name()}")


@dataclass(frozen=True)
class Task:
    """A composition with its truth.

    Attributes:
        name: what tables call it.
        target: the formula.
        exact: exact draws, ``(n, generator) -> (n, D)``.
        log_z: the log integral of the formula as written.
        truth: the answer as a mixture, where it is one: for mode masses.
        inside: whether rows lie on the true support.
        factors: the noised factors of a product.
        tallies: rows evaluated, one count for each factor of :func:`counted`.
        sizes: for sums, how many consecutive components of the truth make up each member.
    """

    name: str
    target: Term
    exact: Exact
    log_z: float
    truth: GaussianMixture | None = None
    inside: Callable[[Tensor], Tensor] | None = None
    factors: tuple[Term, ...] = ()
    tallies: tuple[Tally, ...] = field(default=())
    sizes: tuple[int, ...] = ()

    def evaluations(self) -> int:
        """Rows tallied so far: those of the factor that was called most."""
        return max(t.rows for t in self.tallies)


def product_of(factors: Sequence[Term]) -> Term:
    """The formula f₁ · f₂ · …"""
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def mixture_task(name: str, factors: Sequence[GaussianMixture]) -> Task:
    """A product of Gaussian mixtures."""
    truth, log_z = mixture_product([_double(f) for f in factors])
    return Task(name, product_of(factors), _single(truth), log_z, truth, factors=tuple(factors))


def counted(task: Task, functions: bool) -> Task:
    """The task with factors that tally their evaluations, as closed forms or as plain functions."""
    tallies = tuple(Tally() for _ in task.factors)
    twins: list[Term] = []
    for factor, tally in zip(task.factors, tallies, strict=True):
        if functions:
            twins.append(as_function(factor, tally))
        else:
            assert isinstance(factor, GaussianMixture)
            twins.append(CountedMixture.of(factor, tally))
    name = f"{task.name}, functions" if functions else task.name
    return Task(
        name, product_of(twins), task.exact, task.log_z, task.truth, task.inside, tuple(twins), tallies
    )  # fmt: skip


# ------------------------------------------------------------ products in 2-D


def toy(name: str) -> GaussianMixture:
    """The ring, line or circle of :mod:`boltzmix.models.data` as a closed form."""
    return GaussianMixture(*components(name))


def bar() -> Box:
    """Uniform on |x| < 0.2, |y| < 1."""
    low, high = zip(*BAR, strict=True)
    return Box(list(low), list(high))


def ring_line() -> Task:
    """Ring of 8 modes × line of 6: 48 modes, some nine of which matter."""
    return mixture_task("ring × line", [toy("ring"), toy("line")])


def circle_bar() -> Task:
    """The 2-D product of Du et al. (2023): ring of 8 (radius 0.5, sd 0.03) × bar; exact by rejection."""
    circle, box = toy("circle"), bar()
    means, variance, weights = components("circle")
    (left, right), (bottom, top) = BAR

    def inside_box(x: Tensor) -> Tensor:
        return (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)

    def exact(n: int, generator: torch.Generator) -> Tensor:
        found = torch.empty(0, 2)
        while len(found) < n:
            x = circle.sample(4 * n, generator)
            assert isinstance(x, Tensor)
            found = torch.cat([found, x[inside_box(x)]])
        return found[:n]

    def inside(x: Tensor) -> Tensor:
        near = (torch.cdist(x.double(), means.double()) < 4 * variance**0.5).any(1)
        return inside_box(x) & near

    normal = torch.distributions.Normal(means.double(), variance**0.5)
    edges = torch.tensor(BAR, dtype=torch.float64)
    share = (normal.cdf(edges[:, 1]) - normal.cdf(edges[:, 0])).prod(1)
    log_z = float((share * weights.double()).sum().log() - (edges[:, 1] - edges[:, 0]).log().sum())
    return Task("circle × bar", circle * box, exact, log_z, inside=inside, factors=(circle, box))


# ------------------------------------------------ random mixtures in many dimensions


def random_mixtures(dim: int, seed: int, count: int = 2, modes: int = 6, sd: float = 0.5) -> list[GaussianMixture]:
    """``count`` mixtures of ``modes`` Gaussians of one sd: means N(0, spread² I), weights softmax(N(0, ¼ I))."""
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for _ in range(count):
        means = MIXTURE_SPREAD[dim] * torch.randn(modes, dim, generator=generator, dtype=torch.float64)
        weights = torch.softmax(0.5 * torch.randn(modes, generator=generator, dtype=torch.float64), 0)
        factors.append(GaussianMixture(means.float(), sd**2, weights.float()))
    return factors


def effective_modes(truth: GaussianMixture) -> float:
    """exp of the entropy of the weights."""
    w = truth.weights.double()
    return float((-(w * w.log()).sum()).exp())


def find_seeds(dim: int, count: int = 3, least: float = 4.0, most: int = 1000) -> tuple[int, ...]:
    """The first seeds whose product has at least ``least`` effective modes; :data:`MIXTURE_SEEDS` keeps them."""
    found: list[int] = []
    for seed in range(most):
        truth, _ = mixture_product([_double(f) for f in random_mixtures(dim, seed)])
        if effective_modes(truth) >= least:
            found.append(seed)
        if len(found) == count:
            return tuple(found)
    raise ValueError(f"only {len(found)} of {most} seeds have {least} effective modes in {dim} dimensions")


def random_product(dim: int, seed: int) -> Task:
    """The product of two random six-component mixtures."""
    return mixture_task(f"6 × 6 modes in {dim}-d (seed {seed})", random_mixtures(dim, seed))


# ------------------------------------------------------------- mixtures (sums)


def sums() -> list[Task]:
    """Sums whose members must keep their weights, normalised or not."""
    p, q = Gaussian(torch.tensor([-2.0, 0.0]), 0.25), Gaussian(torch.tensor([2.0, 0.0]), 0.5)
    r, s = Gaussian(torch.tensor([0.0, 1.0]), 1.0), Gaussian(torch.tensor([1.0, -1.0]), 0.7)
    ring, line = toy("ring"), toy("line")
    pr, log_pr = gaussian_product([(p, 1.0), (r, 1.0)])
    qs, log_qs = gaussian_product([(q, 1.0), (s, 1.0)])
    rl, log_rl = mixture_product([_double(ring), _double(line)])
    functions = [as_function(p), as_function(q)]
    return [
        sum_task("mixture([p, q], [.3, .7])", mixture([p, q], [0.3, 0.7]), [(0.3, p), (0.7, q)]),
        sum_task("mixture([fn, fn], [.3, .7])", mixture(functions, [0.3, 0.7]), [(0.3, p), (0.7, q)]),
        sum_task(".2 p + 1.5 q", 0.2 * p + 1.5 * q, [(0.2, p), (1.5, q)]),
        sum_task("p + p·r", p + p * r, [(1.0, p), (math.exp(log_pr), pr)]),
        sum_task("p·r + q·s", p * r + q * s, [(math.exp(log_pr), pr), (math.exp(log_qs), qs)]),
        sum_task("(p + q·s)·r", (p + q * s) * r, _times([(1.0, p), (math.exp(log_qs), qs)], r)),
        sum_task("ring + ring·line", ring + ring * line, [(1.0, ring), (math.exp(log_rl), rl)]),
        sum_task(
            "fn ring + fn ring·fn line",
            as_function(ring) + as_function(ring) * as_function(line),
            [(1.0, ring), (math.exp(log_rl), rl)],
        ),
    ]  # fmt: skip


def _times(members: Sequence[tuple[float, Gaussian]], factor: Gaussian) -> list[tuple[float, Gaussian]]:
    found = []
    for weight, member in members:
        product, log_z = gaussian_product([(member, 1.0), (factor, 1.0)])
        found.append((weight * math.exp(log_z), product))
    return found


def sum_task(name: str, target: Term, members: Sequence[tuple[float, Gaussian | GaussianMixture]]) -> Task:
    """A sum of ``(weight, member)`` pairs, however the formula is written."""
    means, covariances, weights = [], [], []
    for weight, member in members:
        if isinstance(member, GaussianMixture):
            means.append(member.means.double())
            covariances.append(member.covariances.double())
            weights.append(weight * member.weights.double())
        else:
            means.append(member.mean.double()[None])
            covariances.append(member.covariance.double()[None])
            weights.append(torch.tensor([weight], dtype=torch.float64))
    joined = torch.cat(weights)
    truth = GaussianMixture(torch.cat(means), torch.cat(covariances), joined)
    sizes = tuple(len(w) for w in weights)
    return Task(name, target, _single(truth), float(joined.sum().log()), truth, sizes=sizes)


# ------------------------------------------------------------------- by grids


@dataclass(frozen=True)
class Grid:
    """A density summed on a regular grid in one or two dimensions.

    Args:
        energy: of the formula, written out; ``(N, D) -> (N,)``.
        low, high: corners ``(D,)``.
        cells: per dimension.
    """

    energy: Callable[[Tensor], Tensor]
    low: tuple[float, ...]
    high: tuple[float, ...]
    cells: int = 800

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centres of the cells, their log masses, the widths."""
        low, high = (torch.tensor(side, dtype=torch.float64) for side in (self.low, self.high))
        width = (high - low) / self.cells
        axes = [low[d] + width[d] * (torch.arange(self.cells) + 0.5) for d in range(len(low))]
        centres = torch.cartesian_prod(*axes).reshape(-1, len(low))
        logs = torch.cat([-self.energy(rows).double() for rows in centres.split(1 << 16)])
        return centres, logs + width.log().sum(), width

    def solve(self) -> tuple[float, Exact]:
        """log Z and a sampler: a cell by its mass, uniform inside."""
        centres, logs, width = self.table()
        log_z = float(logs.logsumexp(0))
        cumulative = (logs - log_z).exp().cumsum(0)

        def exact(n: int, generator: torch.Generator) -> Tensor:
            at = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
            cell = torch.searchsorted(cumulative, at).clamp(max=len(centres) - 1)
            jitter = torch.rand(n, len(width), generator=generator, dtype=torch.float64) - 0.5
            return (centres[cell] + jitter * width).float()

        return log_z, exact


def grid_task(name: str, target: Term, grid: Grid) -> Task:
    """A formula judged on a grid."""
    log_z, exact = grid.solve()
    return Task(name, target, exact, log_z)


def negations() -> list[Task]:
    """Quotients that have an answer, and bounded negation, whose answer is on a grid."""
    p, q = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.3, [0.5, 0.5]), Gaussian(torch.tensor([1.0, 0.0]), 0.4)
    alpha = 3.0

    def bounded(x: Tensor) -> Tensor:
        x = x.double()
        e_p, e_q = _double(p)._energy(x, None), _double(q)._energy(x, None)
        return e_p + alpha * torch.nn.functional.softplus(e_p - e_q)

    task = grid_task("bounded_negation(p, q, 3)", bounded_negation(p, q, alpha), Grid(bounded, (-5, -4), (5, 4)))
    functions = Task(
        "bounded_negation of functions", bounded_negation(as_function(p), as_function(q), alpha), task.exact, task.log_z
    )  # fmt: skip
    return [task, functions, *narrow_quotients()]


def narrow_quotients() -> list[Task]:
    """N(0,1) / N(0,4)²: proper at σ = 0, improper from σ² = 2 on; as closed forms and as functions."""
    p, q = Gaussian(torch.zeros(1), 1.0), Gaussian(torch.zeros(1), 4.0)
    answer, log_z = gaussian_product([(_double(p), 1.0), (_double(q), -2.0)])
    truth = GaussianMixture(answer.mean[None], answer.covariance[None])
    return [
        Task("N(0,1) / N(0,4)²", p / q**2, _single(truth), log_z, truth),
        Task("N(0,1) / N(0,4)², functions", as_function(p) / as_function(q) ** 2, _single(truth), log_z, truth),
    ]


def unnormalizable() -> list[tuple[str, Term]]:
    """Formulas without a finite integral: they must be refused, or reported, and never drawn as a success."""
    narrow, wide = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.zeros(2), 4.0)
    modes = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 1.0)
    big, small = Box([-1.0, -1.0], [1.0, 1.0]), Box([-0.5, -0.5], [0.5, 0.5])

    def flat(x: Tensor) -> Tensor:
        return 0.0 * x.sum(-1)

    def growing(x: Tensor) -> Tensor:
        return -0.1 * x.square().sum(-1)

    return [
        ("wide / narrow", wide / narrow),
        ("wide / narrow, functions", as_function(wide) / as_function(narrow)),
        ("narrow / modes²", narrow / modes**2),
        ("ring / line³", toy("ring") / toy("line") ** 3),
        ("ring / line³, functions", as_function(toy("ring")) / as_function(toy("line")) ** 3),
        ("big box^1.3 / small box^0.3", big**1.3 / small**0.3),
        ("p / p", narrow / narrow),
        ("1 / p", 1 / narrow),
        ("E = 0", term(flat, kind="energy", event_shape=(2,))),
        ("E = −0.1 |x|²", term(growing, kind="energy", event_shape=(2,))),
    ]


# ------------------------------------------------------------ static × static


def statics() -> list[Task]:
    """Products of static terms, which know no noise levels: judged on grids."""
    laplace, normal = torch.distributions.Laplace(0.5, 0.7), torch.distributions.Normal(-0.5, 1.2)
    one = term(laplace) * term(normal)

    def one_energy(x: Tensor) -> Tensor:
        return -(laplace.log_prob(x[:, 0]) + normal.log_prob(x[:, 0]))

    wide = torch.distributions.MultivariateNormal(torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.3], [0.3, 0.8]]))

    def bent_energy(x: Tensor) -> Tensor:
        return 2 * bent(x.double()) - wide.log_prob(x.float()).double()

    curved = term(bent, kind="energy", event_shape=(2,), normalized=True, name="sinh-arcsinh flow")
    tasks = [
        grid_task("Laplace × Gaussian", one, Grid(one_energy, (-12.0,), (12.0,), 20_000)),
        grid_task("flow² × Gaussian", curved**2 * term(wide), Grid(bent_energy, (-5, -6), (6, 5))),
    ]
    flow = _zuko_flow()
    if flow is not None:

        def flow_energy(x: Tensor) -> Tensor:
            with torch.no_grad():
                return 2 * flow._energy(x.float(), None) - wide.log_prob(x.float())

        tasks.append(grid_task("zuko NSF² × Gaussian", flow**2 * term(wide), Grid(flow_energy, (-5, -6), (6, 5), 400)))
    return tasks


def bent(x: Tensor) -> Tensor:
    r"""Energy of a two-dimensional flow in closed form.

    :math:`z_1 = \sinh(\delta\,\mathrm{arcsinh}(x_1) - \epsilon)` and :math:`z_2 = x_2 - \tfrac12 x_1^2 + \tfrac12` with
    z ~ N(0, I).
    """
    delta, epsilon = 1.2, 0.4
    a = delta * torch.asinh(x[:, 0]) - epsilon
    z1, z2 = a.sinh(), x[:, 1] - 0.5 * x[:, 0] ** 2 + 0.5
    log_slope = math.log(delta) + a.cosh().log() - 0.5 * (1 + x[:, 0] ** 2).log()
    return 0.5 * (z1**2 + z2**2) + math.log(2 * math.pi) - log_slope


def _zuko_flow() -> Term | None:
    """An untrained, strongly bent zuko spline flow; None where zuko is not installed."""
    from importlib.util import find_spec

    if find_spec("zuko") is None:
        return None
    import zuko

    from boltzmix.models.adapters import term as adapt

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        flow = zuko.flows.NSF(2, transforms=2, hidden_features=(16,))
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(2.0)
    return adapt(flow.requires_grad_(False))


def _double(density: Any) -> Any:
    """A Gaussian or a mixture in float64: truths are computed there."""
    if isinstance(density, GaussianMixture):
        return GaussianMixture(density.means.double(), density.covariances.double(), density.weights.double())
    return Gaussian(density.mean.double(), density.covariance.double())


def _single(truth: GaussianMixture) -> Exact:
    """Exact float32 draws of a float64 truth."""

    def exact(n: int, generator: torch.Generator) -> Tensor:
        x = truth.sample(n, generator)
        assert isinstance(x, Tensor)
        return x.float()

    return exact
