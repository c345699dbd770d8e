"""Three families in one formula: a flow as the prior, an autoregressive likelihood, a classifier.

The twin in the plane has the same three families, trained by the same ``fit``, and a grid that gives the exact answer
of the formula as learned. On digits the product has no closed form; there the draws are judged: what a classifier that
took no part sees in them, and their distance to held-out digits of the class. Two densities of the same digits
multiply to one that is sharper than either, so that distance grows, and should.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics
from boltzmix.benchmarks.digits_families import FAMILIES, grey_levels
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.targets import Grid
from boltzmix.compose.kernels import HMC
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC
from boltzmix.compose.term import Term
from boltzmix.models import data
from boltzmix.models.autoregressive import Autoregressive
from boltzmix.models.classifier import Classifier
from boltzmix.models.fit import fit
from boltzmix.models.flow import Flow
from boltzmix.models.load import build, load
from boltzmix.models.nets import CausalTransformer, LogitsMLP
from boltzmix.models.training.seeding import seeded

CLASSES = (3, 8)
COMPONENTS = 10
_SIDE = 2.5


def plane(report: Report, settings: Settings) -> None:
    """The twin with a grid answer: flow of two moons × autoregressive ring × classifier of the moons."""
    steps = settings.size(1500, 20)
    flow, ring, moons = (seeded(make, 0) for make in (_flow, _ring, _moons))
    fit(flow, data.two_moons, steps=steps, batch_size=512, lr=3e-3, ema=0.99, seed=0, progress=False)
    fit(ring, data.ring, steps=steps, batch_size=512, lr=3e-3, ema=0.99, seed=0, progress=False)
    fit(moons, _sides, steps=settings.size(500, 20), batch_size=512, lr=3e-3, ema=0.99, seed=0, progress=False)
    target = flow.eval() * ring.eval() * moons.eval().given(label=1)
    with torch.no_grad():
        low, high = (-_SIDE, -_SIDE), (_SIDE, _SIDE)
        log_z, exact = Grid(lambda x: target.energy(x.float()), low, high, cells=settings.size(600, 150)).solve()
    n = settings.size(2000, 200)
    judge = metrics.Discrepancy(exact, references=settings.size(4, 2))
    floor = metrics.quantile(judge.floor(n, settings.size(60, 8)), 0.99)
    task = "flow × autoregressive × classifier, in the plane"
    report.tell(task, "MMD², 99 % quantile of exact pairs", floor)
    report.tell(task, "log Z of the formula, by the grid", log_z)
    for name, sampler in {"SMC": SMC(), "HMC": MCMC(HMC(), warmup=300, draws=100)}.items():
        values, errors = [], []
        for seed in settings.seeds:
            many: dict[str, Any] = {"chains": n // 20} if name == "HMC" else {"n": 4 * n}
            draw = sample(target, sampler=sampler, seed=seed, progress=False, **many)
            assert isinstance(draw.x, Tensor)
            if name == "HMC":
                x = draw.x[:, 4::5].flatten(0, 1)
            else:  # of four particles one is kept, so that few of those kept share their last ancestor
                x = draw.x[torch.randperm(4 * n, generator=torch.Generator().manual_seed(seed))[:n]]
            values.append(judge(x))
            if draw.log_z is not None:
                errors.append(abs(draw.log_z - log_z) / (draw.log_z_se or float("inf")))
            report.point(task, name, seed=seed, mmd2=values[-1], evaluations=draw.info.evaluations)
        report.check(
            task, f"MMD² over that quantile, {name}, mean over seeds", statistics.fmean(values) / floor, "≤", 1.0
        )
        if errors:
            report.check(task, "log Z against the grid, worst error in standard errors", max(errors), "≤", 3.0)


def digits(report: Report, settings: Settings, folder: Path) -> None:
    """The same three families in 64 dimensions, from the models of the table of families where they are found."""
    task = "flow × autoregressive × classifier, digits"
    # Glow here keeps within the interval outside which the autoregressive model has no density.
    flow, ordered = (_family(name, folder, settings) for name in ("glow", "pixelcnn-reals"))
    classifier = seeded(Classifier, 0)
    stream = data.dequantised_digits("train")
    fit(
        classifier, stream, steps=settings.size(1000, 5), batch_size=128, lr=3e-3, ema=0.99, weight_decay=0.01, seed=0,
        progress=False,
    )  # fmt: skip
    classifier.eval()
    judge = load("digits-classifier")
    test, label = data.digits("test")
    n = settings.size(400, 8)
    for k in CLASSES:
        held_out = test[label == k]
        formulas: dict[str, Term] = {
            "flow": flow,
            "flow × classifier": flow * classifier.given(label=k),
            "flow × autoregressive × classifier": product(flow, ordered, classifier.given(label=k)),
        }
        for name, term in formulas.items():
            draw = sample(term, n, sampler=SMC(path="exact-start"), seed=settings.seeds[0], progress=False)
            assert isinstance(draw.x, Tensor)
            grey = grey_levels(draw.x)
            right = float((judge.predict(grey) == k).double().mean())
            note = (
                f"{draw.info.evaluations:.0f} evaluations; energy distance to held-out digits of the class "
                f"{metrics.energy_distance(grey, held_out):.2f}; log Z {draw.log_z or 0.0:.2f}; {draw.info.reason}"
            )
            if name == "flow × autoregressive × classifier":
                report.check(task, f"seen as {k} by another classifier, {name}", right, "≥", 0.9, note)
            else:
                report.tell(task, f"seen as {k} by another classifier, {name}", right, note)
            report.point(task, f"{name}, class {k}", right=right, evaluations=draw.info.evaluations)


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 3,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """The three families where weights can be trusted: on the leading principal components of digits."""
    title = "A flow, an autoregressive model and a classifier in one formula, on principal components of digits"
    sections = [("components", components)]
    return run_sections("across", title, sections, out=out, quick=quick, seeds=seeds, only=only, progress=progress)


def components(report: Report, settings: Settings) -> None:
    """Flow prior × autoregressive likelihood × classifier over ten components; draws are put back into pixels."""
    (train, label), (test, test_label) = data.digits("train"), data.digits("test")
    centre = train.flatten(1).mean(0)
    _, spread, axes = torch.linalg.svd(train.flatten(1) - centre, full_matrices=False)
    axes, spread = axes[:COMPONENTS], spread[:COMPONENTS] / len(train) ** 0.5

    def coded(images: Tensor) -> Tensor:
        return (images.flatten(1) - centre) @ axes.mT / spread

    x, held_out = coded(train), coded(test)
    flow = seeded(lambda: Flow((COMPONENTS,), "spline", transforms=2, hidden=(64,)), 0)
    net = {"length": COMPONENTS, "outputs": 15, "hidden": 32, "depth": 2, "heads": 4}
    ordered = seeded(
        lambda: Autoregressive(CausalTransformer(**net), (COMPONENTS,), continuous=True, corruption=0.2), 0
    )
    classifier = seeded(
        lambda: Classifier(LogitsMLP(COMPONENTS, out=10, hidden=(64,)), (COMPONENTS,), 10, noise=0.2), 0
    )
    steps = settings.size(600, 10)
    options = {"batch_size": 128, "lr": 2e-3, "ema": 0.99, "weight_decay": 0.3, "seed": 0, "progress": False}
    for model, batch in ((flow, x), (ordered, x), (classifier, (x, label))):
        fit(model, batch, steps=steps, **options)
        model.eval()
    judge, n = load("digits-classifier"), settings.size(2000, 100)
    base = float((judge.predict(_pixels(held_out, centre, axes, spread)) == test_label).double().mean())
    report.tell("components", "held-out digits that the judge recognises from their components", base)
    for k in CLASSES:
        formula = flow * ordered * classifier.given(label=k)
        task, found, shares = f"flow × autoregressive × classifier, class {k}", [], []
        for seed in settings.seeds:
            draw = sample(formula, n, sampler=SMC(), seed=seed, progress=False)
            assert isinstance(draw.x, Tensor)
            assert draw.log_z is not None
            assert draw.log_z_se is not None
            by_smc = draw.x
            found.append((draw.log_z, draw.log_z_se))
            pictures = _pixels(by_smc, centre, axes, spread)
            shares.append(float((judge.predict(pictures) == k).double().mean()))
            report.point(
                task, "SMC", seed=seed, log_z=draw.log_z, log_z_se=draw.log_z_se, right=shares[-1],
                evaluations=draw.info.evaluations, distance=metrics.energy_distance(draw.x, held_out[test_label == k]),
            )  # fmt: skip
        start = flow.sample(n // 20, torch.Generator().manual_seed(k))
        chains = sample(
            formula, chains=n // 20, sampler=MCMC(HMC(), warmup=400, draws=200), init=start, seed=0, progress=False
        )
        assert isinstance(chains.x, Tensor)
        by_hmc = chains.x[:, 9::10].flatten(0, 1)
        share = float((judge.predict(_pixels(by_hmc, centre, axes, spread)) == k).double().mean())
        middle = statistics.fmean(z for z, _ in found)
        apart = max(abs(z - middle) / se for z, se in found)
        spent = statistics.fmean(p["evaluations"] for p in report.curves[task]["SMC"])
        report.check(task, "log Z of seeds, farthest from their mean in standard errors", apart, "≤", 3.0)
        report.tell(task, "seen as the class by the judge, SMC", statistics.fmean(shares), f"{spent:.0f} evaluations")
        report.tell(
            task, "seen as the class by the judge, HMC", share, f"{n // 20} chains started from the flow's draws"
        )
        gap = metrics.energy_distance(by_smc, by_hmc)
        report.check(task, "energy distance of SMC's draws to HMC's", gap, "≤", 0.01, "0 where both are right")
        difference = abs(share - statistics.fmean(shares))
        report.check(task, "shares seen by SMC and by HMC, difference", difference, "≤", 0.05)
        apart = metrics.energy_distance(by_smc, held_out[test_label == k])
        report.tell(
            task, "energy distance to held-out digits of the class", apart, "sharper than either density, so not 0"
        )


def _pixels(z: Tensor, centre: Tensor, axes: Tensor, spread: Tensor) -> Tensor:
    """Components back to images, ``(N, 1, 8, 8)``."""
    return (centre + (z * spread) @ axes).reshape(-1, 1, 8, 8)


def _flow() -> Flow:
    return Flow((2,), "spline", transforms=3, hidden=(64, 64))


def _ring() -> Autoregressive:
    return Autoregressive(CausalTransformer(2, 30, hidden=64, depth=2, heads=4), (2,), continuous=True)


def _moons() -> Classifier:
    return Classifier(LogitsMLP(2, out=2, hidden=(32, 32)), (2,), 2)


def _sides(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points over the plane, labelled 1 where x + y > 0, with labels flipped smoothly across the line."""
    x = 1.2 * torch.randn(n, 2, generator=generator)
    chance = torch.sigmoid(3 * x.sum(1))
    return x, (torch.rand(n, generator=generator) < chance).long()


def _family(name: str, folder: Path, settings: Settings) -> Any:
    try:
        return load(name, folder)
    except (ValueError, FileNotFoundError):
        family = FAMILIES[name]
        model: Any = seeded(lambda: build(family.spec), 0)
        fit(model, family.data(), steps=settings.size(1500, 5), seed=0, progress=False, **family.fit)
        return model.eval()
