"""Composites after compilation: a product of K static factors eager and compiled, and guidance over the bare network.

The eager product evaluates its factors one after the other; compiled with the kernel that moves over it
(:func:`boltzmix.compile_kernel` on HMC with 10 leapfrogs), all factors are one function. Both are judged by what a
compiled block of the same kernel takes on the exact product, which is one factor: a product of K Gaussians is a
Gaussian. Guidance of a network whose conditions go through it in one batch is compared with the bare network on that
batch.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed import pictures
from boltzmix.benchmarks.speed.jobs import compiled
from boltzmix.benchmarks.speed.overhead import SIGMA, bare_work
from boltzmix.benchmarks.speed.scaling import evaluation, guided, mixtures, scored
from boltzmix.benchmarks.speed.timing import in_turns, ratio
from boltzmix.compose.errors import CompileError
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels.langevin import ULA
from boltzmix.compose.product import product
from boltzmix.compose.samplers.base import frozen
from boltzmix.compose.term import Term


def gaussians(count: int, dim: int = 10) -> tuple[Term, Term]:
    """A product of Gaussians, and the Gaussian that it is up to a constant."""
    generator = torch.Generator().manual_seed(count)
    means = torch.randn(count, dim, generator=generator)
    variances = 0.5 + torch.rand(count, dim, generator=generator)
    variance = 1 / (1 / variances).sum(0)
    factors = [Gaussian(m, v) for m, v in zip(means, variances, strict=True)]
    return product(*factors), Gaussian(variance * (means / variances).sum(0), variance)


def section(report: Report, settings: Settings) -> None:
    """Products of 1 to 64 factors, and guidance over 8 labels."""
    bars: dict[str, dict[str, float]] = {}
    for count in (1, 8, 64)[: settings.size(3, 2)]:
        for chains in (256, 4096)[: settings.size(2, 1)]:
            composite, exact = gaussians(count)
            name = f"product of {count} Gaussians, 10-d, {chains} chains"
            bars[f"{count} Gaussians,\n{chains} chains"] = products(report, settings, name, composite, exact, chains)
            name = f"product of {count} mixtures of 4 Gaussians, 8-d, {chains} chains"
            bars[f"{count} mixtures,\n{chains} chains"] = products(
                report, settings, name, mixtures(count), None, chains
            )
    guidance(report, settings)
    report.figures["composites"] = lambda figure: pictures.bars(figure, bars, "evaluations per CPU second")


def products(
    report: Report, settings: Settings, task: str, composite: Term, exact: Term | None, chains: int
) -> dict[str, float]:
    """Evaluations for each CPU second, eager and compiled, in turns with the exact product compiled."""
    x = 0.1 * torch.randn(chains, composite.event_shape[0], generator=torch.Generator().manual_seed(0))
    ways, each, out = evaluation(composite, x, 0.02)
    for why in out.values():
        report.skip(f"{task}, compiled", why)
    if exact is not None:
        own, own_each, own_out = evaluation(exact, x, 0.02)
        if not own_out:
            ways["the exact product, compiled"] = own["compiled"]
            each["the exact product, compiled"] = own_each["compiled"]
    times = in_turns(ways, settings.size(6, 2), least=0.02 if not settings.quick else 0.002)
    rates = {name: [chains * each.get(name, 1) / s for s in spent] for name, spent in times.items()}
    for name, rate in rates.items():
        note = ""
        if name != "eager":
            value, low, high = ratio(rate, rates["eager"])
            note = f"{value:.3g} times eager ({low:.3g} … {high:.3g} of {len(rate)} rounds)"
        report.tell(task, f"evaluations per CPU second, {name}", statistics.median(rate), note)
    for k, values in enumerate(zip(*rates.values(), strict=True)):
        report.point("composites", task, round=k, **dict(zip(rates, values, strict=True)))
    return {name: statistics.median(rate) for name, rate in rates.items()}


def guidance(report: Report, settings: Settings) -> None:
    """The score of guidance over 8 labels of a U-Net over the bare network, eager and compiled in steps of Langevin."""
    n, shape, labels = settings.size(16, 4), (1, 8, 8), 8
    p, composite = guided(labels, shape, 10, (32, 64) if not settings.quick else (8, 16))
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    task = f"score of {labels}-label guidance, {n} × 1×8×8"
    with frozen(composite):
        jobs: dict[str, Callable[[], object]] = {
            "eager": scored(composite, x),
            "bare": bare_work(p, x, torch.tensor(SIGMA), labels),
        }
        try:
            jobs["compiled, by step of Langevin"] = langevin(composite, x, settings.size(10, 2))
        except CompileError as error:
            report.skip(f"{task}, compiled", str(error))
        times = in_turns(jobs, settings.size(6, 2))
    per = {name: settings.size(10, 2) if "compiled" in name else 1 for name in jobs}
    for name in jobs:
        if name == "bare":
            continue
        value, low, high = (r / per[name] for r in ratio(times[name], times["bare"]))
        note = f"quartiles {low:.3f} … {high:.3f}; against one eager forward of {(labels + 1) * n} rows"
        report.tell(task, f"median time ratio, {name}", value, note)


def langevin(term: Term, x: Tensor, steps: int) -> Callable[[], object]:
    """A compiled block of unadjusted Langevin on a composite at one noise level: one score each step.

    Raises:
        CompileError: no backend can.
    """
    kernel, target = ULA(step_size=1e-3), ravel(term, SIGMA, dtype=torch.float32)
    state = kernel.init(target, x.flatten(1))
    tune = kernel.tune(state.x)
    noise = kernel.noise(state, torch.Generator().manual_seed(0), steps)
    block = compiled(kernel, target, state, tune, "auto")
    block(state, tune, noise)
    return lambda: block(state, tune, noise)
