"""Overhead: what the framework costs over the bare work, as the median of paired runs in one process on one thread.

"guidance" compares the score of p · ∏ (p|c_k / p)^w over 8 labels of one U-Net with one bare forward (and backward, for
energies) of the network on the concatenated batch of 9 rows for each state; "hmc" compares :class:`boltzmix.HMC` on a
100-dimensional Gaussian with a loop written by hand, which calls the same ``target.energy_and_score`` and makes the
same checks for values that are not finite. Both are eager.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from boltzmix.benchmarks import plots
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.speed.timing import paired, ratio
from boltzmix.compose.flat import FlatTarget, ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import frozen
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.term import Term
from boltzmix.models.denoiser import Denoiser, tile
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.nets import UNet
from boltzmix.models.nets.embedding import NULL

_LABELS = 8
_POWER = 1.5
SIGMA = 0.5
_RATIOS = "ratios of times"


def judge(report: Report, task: str, times: Sequence[tuple[float, float]], bound: float | None, note: str) -> None:
    """The median ratio against its target, with the times behind it."""
    value, low, high = ratio([a for a, _ in times], [b for _, b in times])
    ours, bare = (statistics.median(t[k] for t in times) * 1e3 for k in (0, 1))
    words = f"{ours:.3g} ms / {bare:.3g} ms; quartiles {low:.3f} … {high:.3f} of {len(times)} pairs; {note}"
    if bound is None:
        report.tell(task, "median time ratio", value, words)
    else:
        report.check(task, "median time ratio", value, "≤", bound, words)
    for a, b in times:
        report.point(_RATIOS, task, seconds=a, bare_seconds=b, ratio=a / b)


# -------------------------------------------------------------------- guidance


def guidance_composite(p: Denoiser) -> Term:
    """p · ∏_k (p|k / p)^w over 8 labels: nine conditions of one network."""
    return product(p, *[(p.given(label=k) / p) ** _POWER for k in range(_LABELS)])


def bare_work(p: Denoiser, x: Tensor, sigma: Tensor, labelled: int = _LABELS) -> Callable[[], Tensor]:
    """One forward of the network on the concatenated batch, and one backward where p is an energy.

    The batch holds each state without a label and with each of the first ``labelled``.
    """
    k = labelled + 1
    scaled = tile(x / p.core.spread(sigma), k)
    c_noise = (sigma.log() / 4).expand(len(scaled))
    rows = [torch.full((len(x),), label) for label in (NULL, *range(labelled))]
    labels = torch.cat(rows)
    net = p.core.net

    def forward() -> Tensor:
        with torch.no_grad():
            return net(scaled, c_noise, labels)

    def forward_and_backward() -> Tensor:
        leaf = scaled.detach().requires_grad_()
        out = net(leaf, c_noise, labels)
        return torch.autograd.grad((leaf * out).sum(), leaf)[0]

    return forward_and_backward if p.has_energy else forward


def guidance(report: Report, settings: Settings) -> None:
    """A guidance composite over 8 labels of one U-Net against the bare network."""
    shapes = [((1, 8, 8), 64), ((1, 8, 8), 16), ((3, 32, 32), 4)]
    for kind, work in ((Diffusion, "forward"), (EnergyDiffusion, "forward + backward")):
        for shape, n in shapes[: settings.size(3, 1)]:
            times = []
            for seed in settings.seeds:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    net = UNet(shape[0], hidden=(32, 64), num_classes=10)
                    p = kind(net, shape, num_classes=10).eval()
                    for parameter in p.parameters():  # layers that start at zero would make a trivial network
                        parameter.data += 0.02 * torch.randn_like(parameter)
                    x = torch.randn(n, *shape)
                sigma = torch.tensor(SIGMA)
                composite = guidance_composite(p)
                bare = bare_work(p, x, sigma)

                def ours(composite: Term = composite, x: Tensor = x) -> object:
                    with torch.no_grad():
                        return composite.score(x, SIGMA)

                with frozen(composite):
                    times += paired(ours, bare, settings.size(12, 3))
            name = f"score of 8-label guidance, {kind.__name__}, {n} × {'×'.join(map(str, shape))}"
            judge(report, name, times, 1.05, f"against one {work} of {(_LABELS + 1) * n} rows")
    _figure(report)


# ------------------------------------------------------------------------- HMC


def by_hand(
    target: FlatTarget,
    x: Tensor,
    step_size: float,
    leapfrogs: int,
    steps: int,
    jitter: bool,
    generator: torch.Generator,
    lean: bool = False,
) -> Tensor:
    """HMC as one would write it for one target: L evaluations for each transition, the same checks.

    ``lean`` asks for energies only where they are used, at the end of a trajectory.
    """
    energy, score = target.energy_and_score(x)
    for _ in range(steps):
        velocity = torch.randn(x.shape, generator=generator)
        eps: float | Tensor = step_size
        if jitter:
            eps = step_size * (0.8 + 0.4 * torch.rand(len(x), 1, generator=generator))
        start = velocity
        y, e, s = x, energy, score
        velocity = velocity + 0.5 * eps * s
        for k in range(leapfrogs):
            y = y + eps * velocity
            if lean and k < leapfrogs - 1:
                s = target.score(y)
            else:
                e, s = target.energy_and_score(y)
            velocity = velocity + (eps if k < leapfrogs - 1 else 0.5 * eps) * s
        log_ratio = energy - e + 0.5 * ((start * start).sum(-1) - (velocity * velocity).sum(-1))
        finite = torch.isfinite(e) & torch.isfinite(s).all(-1)
        accepted = finite & (torch.rand(len(x), generator=generator).log() < log_ratio)
        column = accepted[:, None]
        x, energy, score = torch.where(column, y, x), torch.where(accepted, e, energy), torch.where(column, s, score)
    return x


def by_kernel(target: FlatTarget, x: Tensor, kernel: HMC, steps: int, generator: torch.Generator) -> Tensor:
    """The same with the public kernel loop."""
    state, tune = kernel.init(target, x), kernel.tune(x)
    for _ in range(steps):
        state, _ = kernel.step(target, state, tune, kernel.noise(state, generator))
    return state.x


def hmc(report: Report, settings: Settings) -> None:
    """Eager HMC on a 100-d Gaussian against the loop by hand, and chains through ``sample``."""
    gaussian = Gaussian(torch.zeros(100), torch.linspace(0.5, 2.0, 100))
    target = ravel(gaussian)
    step_size, leapfrogs = 0.2, 10
    for chains, steps in ((64, settings.size(40, 5)), (4096, settings.size(4, 2))):
        for jitter, lean in ((False, False), (True, False), (False, True)):
            kernel = HMC(step_size, leapfrogs, jitter)
            times = []
            for seed in settings.seeds:
                x = gaussian.sample(chains, torch.Generator().manual_seed(seed))
                assert isinstance(x, Tensor)
                own, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)

                def ours(kernel: HMC = kernel, x: Tensor = x, own: torch.Generator = own, steps: int = steps) -> object:
                    return by_kernel(target, x, kernel, steps, own)

                def hand(
                    x: Tensor = x,
                    other: torch.Generator = other,
                    steps: int = steps,
                    jitter: bool = jitter,
                    lean: bool = lean,
                ) -> object:
                    return by_hand(target, x, step_size, leapfrogs, steps, jitter, other, lean)

                times += paired(ours, hand, settings.size(12, 3))
            name = f"HMC, 100-d Gaussian, {chains} chains, jitter {'on' if jitter else 'off'}"
            name += ", lean loop" if lean else ""
            against = "a loop without needless energies" if lean else "the loop by hand"
            judge(report, name, times, 1.1, f"{steps} transitions of {leapfrogs} leapfrogs against {against}")
        through_sample(report, settings, gaussian, chains, 2 * steps)
    _figure(report)


def through_sample(report: Report, settings: Settings, gaussian: Gaussian, chains: int, steps: int) -> None:
    """The whole of ``sample(…, sampler=MCMC(HMC(…)))``, which keeps and diagnoses its draws, against the loop."""
    target, times = ravel(gaussian), []
    sampler = MCMC(HMC(0.2, 10, jitter=False), warmup=0, draws=steps, adapt=False)
    for seed in settings.seeds:
        x = gaussian.sample(chains, torch.Generator().manual_seed(seed))
        assert isinstance(x, Tensor)
        generator = torch.Generator().manual_seed(seed)

        def ours(x: Tensor = x, seed: int = seed) -> object:
            return sample(gaussian, chains=chains, sampler=sampler, init=x, seed=seed, progress=False)

        def hand(x: Tensor = x, generator: torch.Generator = generator) -> object:
            return by_hand(target, x, 0.2, 10, steps, False, generator)

        times += paired(ours, hand, settings.size(4, 2))
    note = f"{steps} draws kept, with ESS and R-hat; context"
    judge(report, f"sample(chains={chains}, MCMC(HMC)), jitter off", times, None, note)


def _figure(report: Report) -> None:
    bounds = {r.task: float(r.target.split()[-1]) for r in report.rows if r.target.startswith("≤")}
    report.figures["ratios"] = lambda figure: plots.ratios(figure, report.curves[_RATIOS], bounds)
