"""How the cost of an evaluation grows: with chains, dimension, conditions and the size of a network, beside the floor.

An evaluation is energy and score of one state, which :func:`boltzmix.ravel` gives for rows of states, eagerly;
"compiled" is one in a block of HMC with 10 leapfrogs (:func:`boltzmix.compile_kernel`), its share of the transition
included. The floor is what the same machine takes for the least that the same work needs, timed in turns with it in the
same process: one copy of the states where numbers are only moved, the products of matrices of the same shapes where
these dominate, and for convolutions their operations at the rate of a square product. A share above 1 says that torch's
own copy or product of these shapes is not the machine's best: with few rows they are mostly calls. Reported are the
exponents of cost (:func:`boltzmix.benchmarks.speed.fits.growth`) of both, and the share of the floor's rate that is
reached.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import floors as machine
from boltzmix.benchmarks.speed import pictures
from boltzmix.benchmarks.speed.fits import growth
from boltzmix.benchmarks.speed.jobs import LEAPFROGS, compiled
from boltzmix.benchmarks.speed.overhead import SIGMA, bare_work
from boltzmix.benchmarks.speed.timing import in_turns
from boltzmix.compose.errors import CompileError
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.product import product
from boltzmix.compose.samplers.base import frozen
from boltzmix.compose.term import Term
from boltzmix.models.denoiser import Denoiser
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_model import EnergyModel
from boltzmix.models.nets import EnergyMLP, UNet

FLOOR = "floor"
_SQUARE = 1024  # of the product whose rate stands for a convolution's
_STEPS = 10  # transitions of a compiled block


@dataclass(frozen=True)
class Case:
    """One size.

    Args:
        size: along the axis.
        rows: states of one evaluation.
        ours: ways to evaluate them all once, by name.
        floor: does the least that it needs; None where the floor is ``floor_seconds``.
        floor_seconds: likewise, where it is computed.
        each: evaluations of all rows in one call, by name; 1 where nothing is said.
        left_out: why ways are not measured, by name.
    """

    size: int
    rows: int
    ours: Mapping[str, Callable[[], object]]
    floor: Callable[[], object] | None = None
    floor_seconds: float | None = None
    each: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def sizes(low: float, high: float, per_decade: int) -> list[int]:
    """Whole numbers at equal distances of their logarithms, from one to the other.

    >>> sizes(1, 1000, 2)
    [1, 3, 10, 32, 100, 316, 1000]
    """
    count = round(per_decade * math.log10(high / low)) + 1
    points = [low * (high / low) ** (k / (count - 1)) for k in range(count)]
    return list(dict.fromkeys(round(p) for p in points))


def sweep(report: Report, settings: Settings, axis: str, task: str, cases: Iterable[Case], floor: str) -> None:
    """Time every size in turns with its floor; exponents, and the share of the floor at the largest.

    Args:
        report: to fill.
        settings: rounds.
        axis: what grows: one figure holds all tasks of an axis.
        task: what is evaluated.
        cases: in the order of size.
        floor: what stands for it, in words.
    """
    seconds: dict[str, dict[int, float]] = {}
    shares: dict[str, dict[int, float]] = {}
    rows: dict[int, int] = {}
    missing: dict[str, dict[int, str]] = {}
    for case in cases:
        jobs = dict(case.ours) | ({} if case.floor is None else {FLOOR: case.floor})
        times = in_turns(jobs, settings.size(5, 3), least=0.02 if not settings.quick else 0.002)
        own = times.pop(FLOOR, None)
        if own is None:
            assert case.floor_seconds is not None
            own = [case.floor_seconds] * settings.size(5, 3)
        rows[case.size] = case.rows
        seconds.setdefault(FLOOR, {})[case.size] = statistics.median(own)
        for name, spent in times.items():
            each = case.each.get(name, 1)
            seconds.setdefault(name, {})[case.size] = statistics.median(spent) / each
            within = [each * f / s for f, s in zip(own, spent, strict=True)]
            shares.setdefault(name, {})[case.size] = statistics.median(within)
        for name, why in case.left_out.items():
            missing.setdefault(name, {})[case.size] = why
        report.point(f"{axis}: {task}", "points", size=case.size, rows=case.rows, **{
            name: per[case.size] for name, per in seconds.items() if case.size in per
        })  # fmt: skip
    _rows(report, axis, task, seconds, shares, rows, floor)
    for name, whys in missing.items():
        which = ", ".join(map(str, whys))
        report.skip(f"{task}, {name}, {axis} {which}", next(iter(whys.values())))
    mark = f"{axis}: "
    curves = report.curves
    report.figures[f"scaling-{axis}"] = lambda figure: pictures.growth(figure, axis, {
        name.removeprefix(mark): found["points"] for name, found in curves.items() if name.startswith(mark)
    })  # fmt: skip


def _rows(
    report: Report,
    axis: str,
    task: str,
    seconds: Mapping[str, Mapping[int, float]],
    shares: Mapping[str, Mapping[int, float]],
    rows: Mapping[int, int],
    floor: str,
) -> None:
    for name in (*(n for n in seconds if n != FLOOR), FLOOR):
        per = seconds[name]
        largest = max(per)
        what = f"{floor}, the floor" if name == FLOOR else name
        try:
            found = growth(list(per), list(per.values()))
        except ValueError as error:
            report.skip(f"{task}, {what}", str(error))
        else:
            note = f"± {found.error:.3f}; {found.points} sizes up to {largest}"
            report.tell(task, f"exponent of cost in {axis}, {what}", found.exponent, note)
        rate = rows[largest] / per[largest]
        if name == FLOOR:
            report.tell(task, f"evaluations per CPU second at {largest}, {what}", rate)
            continue
        best = max(per, key=lambda size: rows[size] / per[size])
        note = f"{shares[name][largest]:.3g} of the floor's; {min(shares[name].values()):.2g} … "
        note += f"{max(shares[name].values()):.2g} over all sizes; most at {best}: {rows[best] / per[best]:.3g}"
        report.tell(task, f"evaluations per CPU second at {largest}, {what}", rate, note)


def floors(report: Report, settings: Settings) -> None:
    """Bandwidth of the memory and of a cache, and the rate of products of matrices."""
    rounds = settings.size(9, 3)
    for name, rate in machine.bandwidths(rounds, settings.size(machine.IN_MEMORY, 1 << 25)).items():
        report.tell("memory", f"GB per CPU second, {name}", rate / 1e9)
    for size in (64, 256, settings.size(2048, 512)):
        report.tell("products of matrices", f"1e9 operations per CPU second, {size} × {size} × {size}",
                    machine.matrix_rate(size, rounds) / 1e9)  # fmt: skip


# ------------------------------------------------------------- chains, dimension


def evaluation(term: Term, x: Tensor, step_size: float | None = None) -> tuple[dict, dict, dict]:
    """Ways to evaluate rows once: eager, and compiled where there is a step size; their ``each`` and ``left_out``.

    Compiled evaluations are those of a block of HMC: its noise is drawn beforehand.
    """
    target = ravel(term, dtype=torch.float32)
    ways: dict[str, Callable[[], object]] = {"eager": lambda: target.energy_and_score(x)}
    if step_size is None:
        return ways, {}, {}
    kernel = HMC(step_size, LEAPFROGS, jitter=False)
    state = kernel.init(target, x)
    tune, steps = kernel.tune(x), max(1, min(_STEPS, 2**23 // x.numel()))
    noise = kernel.noise(state, torch.Generator().manual_seed(0), steps)
    try:
        block = compiled(kernel, target, state, tune, "auto")
        block(state, tune, noise)
    except CompileError as error:
        return ways, {}, {"compiled": str(error)}
    ways["compiled"] = lambda: block(state, tune, noise)
    return ways, {"compiled": steps * LEAPFROGS}, {}


def chains(report: Report, settings: Settings) -> None:
    """One to a hundred thousand chains: numbers moved, a full covariance, and a regression by automatic derivatives."""
    grid = sizes(1, settings.size(100_000, 1000), settings.size(2, 3))

    def elementwise() -> Iterable[Case]:
        term = Gaussian(torch.zeros(100), torch.linspace(0.5, 2.0, 100))
        for n in grid:
            x = torch.randn(n, 100, generator=torch.Generator().manual_seed(n))
            ways, each, out = evaluation(term, x, 0.1)
            yield Case(n, n, ways, machine.copied(x), each=each, left_out=out)

    def covariance() -> Iterable[Case]:
        term = full_gaussian(50)
        for n in grid:
            x = torch.randn(n, 50, generator=torch.Generator().manual_seed(n))
            ways, each, out = evaluation(term, x, 0.1)
            yield Case(n, n, ways, machine.products([(n, 50, 50), (n, 50, 50)]), each=each, left_out=out)

    def regression() -> Iterable[Case]:
        term, data = logistic()
        shapes = [(data.shape[1], data.shape[0]), data.shape]
        for n in grid:
            x = 0.1 * torch.randn(n, data.shape[1], generator=torch.Generator().manual_seed(n))
            ways, each, out = evaluation(term, x, 0.01)
            yield Case(n, n, ways, machine.products([(n, *s) for s in shapes]), each=each, left_out=out)

    sweep(report, settings, "chains", "100-d Gaussian", elementwise(), "one copy of the states")
    sweep(report, settings, "chains", "50-d Gaussian, full covariance", covariance(), "products of the same shapes")
    sweep(report, settings, "chains", "logistic regression 1000 × 25", regression(), "products of the same shapes")


def dimension(report: Report, settings: Settings) -> None:
    """2 to 10,000 dimensions with 256 chains (a full covariance: to 2,048)."""
    n = 256

    def elementwise() -> Iterable[Case]:
        for d in sizes(2, settings.size(10_000, 500), settings.size(2, 3)):
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
            term = Gaussian(torch.zeros(d), torch.linspace(0.5, 2.0, d))
            ways, each, out = evaluation(term, x, 0.05)
            yield Case(d, n, ways, machine.copied(x), each=each, left_out=out)

    def covariance() -> Iterable[Case]:
        for d in sizes(2, settings.size(2048, 128), 3):
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
            ways, each, out = evaluation(full_gaussian(d), x)
            yield Case(d, n, ways, machine.products([(n, d, d), (n, d, d)]), each=each, left_out=out)

    sweep(report, settings, "dimension", "Gaussian, 256 chains", elementwise(), "one copy of the states")
    task = "Gaussian with full covariance, 256 chains"
    sweep(report, settings, "dimension", task, covariance(), "products of the same shapes")


def full_gaussian(dim: int) -> Gaussian:
    """A Gaussian whose axes are turned."""
    generator = torch.Generator().manual_seed(dim)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    covariance = (basis * torch.linspace(0.5, 2.0, dim)) @ basis.mT
    return Gaussian(torch.zeros(dim), 0.5 * (covariance + covariance.mT))


def logistic(rows: int = 1000, dim: int = 25) -> tuple[Term, Tensor]:
    """A regression on seeded data, written as a user would write it, and its data ``(rows, dim)``."""
    from boltzmix.compose.callables import term

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(rows, dim, generator=generator)
    answers = (torch.rand(rows, generator=generator) < torch.sigmoid(0.3 * data.sum(1))).float()

    def log_prob(x: Tensor) -> Tensor:
        u = x @ data.mT
        return (u * answers - nn.functional.softplus(u)).sum(-1) - 0.5 * (x * x).sum(-1)

    return term(log_prob, kind="log_prob", event_shape=(dim,), name="logistic"), data


# ---------------------------------------------------------- conditions, networks


def mixtures(count: int, dim: int = 8, components: int = 4) -> Term:
    """A product of independent mixtures of Gaussians."""
    factors = []
    for k in range(count):
        generator = torch.Generator().manual_seed(k)
        means = torch.randn(components, dim, generator=generator)
        factors.append(GaussianMixture(means, torch.full((components, dim), 0.5 + k % 3)))
    return product(*factors)


def guided(
    count: int, shape: tuple[int, ...], labels: int, hidden: Sequence[int], seed: int = 0
) -> tuple[Denoiser, Term]:
    """A U-Net of ``labels`` labels whose weights do something, and p · ∏_k (p|k / p)^1.5 over the first ``count``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(shape[0], hidden=tuple(hidden), num_classes=labels)
        p = Diffusion(net, shape, num_classes=labels).eval()
        for parameter in p.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return p, product(p, *[(p.given(label=k) / p) ** 1.5 for k in range(count)])


def scored(term: Term, x: Tensor) -> Callable[[], object]:
    """The score at one noise level."""

    def job() -> Tensor:
        with torch.no_grad():
            return term.score(x, SIGMA)  # pyright: ignore[reportReturnType]

    return job


def conditions(report: Report, settings: Settings) -> None:
    """1 to 64 conditions of one network in one batch, and as many independent factors without a network."""
    counts = [2**k for k in range(settings.size(7, 5))]

    def factors() -> Iterable[Case]:
        n, dim, components = 1024, 8, 4
        x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
        for k in counts:
            ways, each, out = evaluation(mixtures(k, dim, components), x, 0.02)
            shapes = [(n, dim, k * components), (n, k * components, dim)]
            yield Case(k, n, ways, machine.products(shapes), each=each, left_out=out)

    def guidance() -> Iterable[Case]:
        n, shape = settings.size(16, 4), (1, 8, 8)
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
        for k in counts:
            p, composite = guided(k, shape, counts[-1], (32, 64) if not settings.quick else (8, 16))
            bare = bare_work(p, x, torch.tensor(SIGMA), k)
            with frozen(composite):
                yield Case(k, n, {"eager": scored(composite, x)}, bare)

    task = "product of mixtures of 4 Gaussians, 8-d, 1024 chains"
    sweep(report, settings, "conditions", task, factors(), "products of the same shapes")
    task = f"scores of guidance by conditions of one U-Net, {settings.size(16, 4)} × 1×8×8"
    sweep(report, settings, "conditions", task, guidance(), "the bare network on all rows")


def networks(report: Report, settings: Settings) -> None:
    """Widths of a network: energy and score of an MLP, and the score of a U-Net."""

    def mlp() -> Iterable[Case]:
        n, dim, depth = 256, 16, 3
        x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
        for width in sizes(16, settings.size(2048, 128), 3 if not settings.quick else 5):
            model = energy_mlp(dim, width, depth)
            ways, each, out = evaluation(model, x)
            layers = [(dim, width), *[(width, width)] * depth, (width, 1)]
            shapes = [(n, *s) for s in layers] + [(n, b, a) for a, b in layers]
            yield Case(width, n, ways, machine.products(shapes), each=each, left_out=out)

    def unet() -> Iterable[Case]:
        n, shape = settings.size(16, 4), (1, 8, 8)
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
        rate = machine.matrix_rate(settings.size(_SQUARE, 256), settings.size(5, 3))
        for width in (8, 16, 32, 64, 96, 128, 192, 256) if not settings.quick else (8, 16, 24, 32, 48, 64):
            p, _ = guided(1, shape, 1, (width, 2 * width))
            with frozen(p):
                job = scored(p, x)
                yield Case(width, n, {"eager": job}, floor_seconds=operations(job) / rate)

    task = "energy model, MLP of 3 layers, 16-d, 256 chains"
    sweep(report, settings, "networks", task, mlp(), "products of the same shapes, forward and backward")
    task = f"score of a U-Net (w, 2w), {settings.size(16, 4)} × 1×8×8"
    sweep(report, settings, "networks", task, unet(), "its operations at the rate of a square product")


def energy_mlp(dim: int, width: int, depth: int) -> EnergyModel:
    """An energy model whose network does something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        model = EnergyModel(EnergyMLP(dim, hidden=width, depth=depth), (dim,), loc=0.0, scale=1.0).eval()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return model


def operations(job: Callable[[], object]) -> int:
    """Multiplications and additions of matrices and convolutions in one call.

    >>> operations(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
    48
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()
