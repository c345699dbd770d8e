"""What composing costs beside the bare network: one guided composite, and whole pictures against a loop by hand."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.report import Report
from boltzmix.compose import Reverse, sample
from boltzmix.compose.term import Term

CONDITIONS = (
    {"shape": "circle", "x": 8.0, "y": 8.0},
    {"color": "red", "x": 24.0, "y": 20.0},
    {"color": "green", "x": 8.0, "y": 24.0},
    {"shape": "square", "x": 22.0, "y": 8.0},
)
POWER = 2.0


def composite(model: Term) -> Term:
    """Four conditions with guidance power 2: five views of one network."""
    product = model
    for condition in CONDITIONS:
        product = product * (model.given(**condition) / model) ** POWER
    return product


def bare_scores(model: Any, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
    """The same score by hand: one call of the network on five times the rows, and the arithmetic."""
    core = model.core
    spread = (sigma**2 + core.sigma_data**2).sqrt()
    tall = ((x - core.loc) / spread).repeat(5, 1, 1, 1)
    noise = (sigma.log() / 4).expand(len(tall))
    out = core.net(tall, noise, rows)
    scores = -(x - core.loc).repeat(5, 1, 1, 1) / spread**2 + core.sigma_data / (sigma * spread) * out
    free, *told = scores.chunk(5)
    return free + POWER * sum(part - free for part in told)


def description_rows(model: Any, n: int) -> Tensor:
    """What the network is told in the five parts of the tall batch."""
    parts = [torch.full((n, len(model.description.names)), -1.0)]
    parts += [model.description.rows(condition).expand(n, -1) for condition in CONDITIONS]
    return torch.cat(parts)


def overhead(report: Report, model: Any, sizes: tuple[int, ...], repeats: int) -> float:
    """Median ratio of processor times, composite over bare, in turns; the largest over batch sizes."""
    worst = 0.0
    with torch.no_grad():
        for n in sizes:
            x = torch.randn(n, *model.event_shape, generator=torch.Generator().manual_seed(n))
            sigma, rows, formula = torch.tensor(1.0), description_rows(model, n), composite(model)
            own: Any = formula.score(x, 1.0)
            assert torch.allclose(own, bare_scores(model, x, sigma, rows), rtol=1e-3, atol=1e-3)
            # ratios of neighbours in time: whatever else the machine does meets both
            ratios = []
            for _ in range(repeats):
                ours = _seconds(lambda f=formula, x=x: f.score(x, 1.0))
                bare = _seconds(lambda x=x, s=sigma, r=rows: bare_scores(model, x, s, r))
                ratios.append(ours / bare)
            ratio = statistics.median(ratios)
            worst = max(worst, ratio)
            report.tell(
                "four guided conditions", f"time over one bare forward, {n} pictures", ratio, f"{repeats} turns"
            )
    return worst


def pictures_per_second(report: Report, model: Any, n: int, steps: int, repeats: int) -> float:
    """Median ratio of rates: ``sample`` over a loop by hand around a scheduler of diffusers, at equal evaluations.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    from boltzmix.compose.errors import MissingExtra

    try:
        from diffusers import EDMEulerScheduler  # pyright: ignore
    except ImportError as error:
        raise MissingExtra('the loop by hand needs diffusers: pip install "boltzmix[diffusers]"') from error
    low, high = model.sigma_range
    formula, rows = composite(model), description_rows(model, n)

    def by_hand() -> Tensor:
        scheduler: Any = EDMEulerScheduler(sigma_min=low, sigma_max=high, sigma_data=model.core.sigma_data)
        scheduler.set_timesteps(steps)
        x = torch.randn(n, *model.event_shape, generator=torch.Generator().manual_seed(0)) * high
        for index, step in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[index].float()
            scheduler.scale_model_input(x, step)  # what the loop calls; the preconditioning is the network's own
            score = bare_scores(model, x, sigma, rows)
            denoised = x + sigma**2 * score
            x = x + (scheduler.sigmas[index + 1].float() - sigma) * (x - denoised) / sigma
        return x

    def ours() -> Any:
        return sample(formula, n, sampler=Reverse(steps=steps, solver="euler"), seed=0, progress=False).x

    ratios, rates = [], []
    with torch.no_grad():
        for _ in range(repeats):
            own, loop = _seconds(ours), _seconds(by_hand)
            ratios.append(loop / own)
            rates.append(n / own)
    ratio = statistics.median(ratios)
    report.tell("whole pictures", "pictures a second", statistics.median(rates), f"{n} at a time, {steps} evaluations")
    report.tell("whole pictures", "rate over a loop by hand", ratio, f"{repeats} turns")
    return ratio


def _seconds(call: Callable[[], Any]) -> float:
    clock = time.process_time()
    call()
    return time.process_time() - clock
