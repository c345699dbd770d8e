"""A small model times a large prior: what few images of a rare class say, in the words of a model of many.

The large prior is trained on the digits without labels, with all but a few images of three classes left out. For each
of those classes a small network sees these few images alone. Their product, ``small * large``, is sampled as it is
written and compared with the small model alone on the held-out digits of the class, with the same sampler and the same
number of draws. How long the small network is trained decides whether it blurs or remembers, so both sides are shown at
several lengths and compared at the one that suits each best (the idea: Yang, Du, Dai, Schuurmans, Tenenbaum and Abbeel,
2024, *Probabilistic adaptation of black-box text-to-video models*).
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import metrics
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.smc import Annealed
from boltzmix.compose.term import Term
from boltzmix.models import data
from boltzmix.models.energy_diffusion import EnergyDiffusion
from boltzmix.models.fit import fit
from boltzmix.models.load import load
from boltzmix.models.nets import UNet
from boltzmix.models.training.seeding import seeded

RARE = (3, 5, 8)
FEW = 12
LARGE = {"hidden": (32, 64), "steps": 1500, "batch_size": 128, "ema": 0.998}
SMALL = {"hidden": (8, 16), "batch_size": 64, "ema": 0.98}
LENGTHS = (100, 300, 1000)  # steps of the small network


def rare_classes(report: Report, settings: Settings) -> None:
    """Energy distance to held-out digits, and the share that a classifier recognises, of three rare classes."""
    (train, label), (test, test_label) = data.digits("train"), data.digits("test")
    classifier = load("digits-classifier")
    n = settings.size(120, 16)
    rare = RARE[: settings.size(len(RARE), 1)]
    sampler = Annealed(levels=settings.size(48, 6), sweeps=1)
    for seed in settings.seeds:
        generator = torch.Generator().manual_seed(seed)
        few = {c: _some(torch.nonzero(label == c)[:, 0], generator) for c in RARE}
        common = (label[:, None] != torch.tensor(RARE)).all(1).nonzero()[:, 0]
        large = _trained(train[torch.cat([common, *few.values()])], train.mean(0), LARGE, seed, settings)
        for c in rare:
            held_out = test[test_label == c]
            terms: dict[str, Term] = {"large": large}
            for steps in LENGTHS:
                small = _trained(train[few[c]], train.mean(0), {**SMALL, "steps": steps}, seed, settings)
                terms[f"small, {steps} steps"] = small
                terms[f"small * large, {steps} steps"] = small * large
            for name, term in terms.items():
                draw = sample(term, n, sampler=sampler, seed=seed, progress=False)
                assert isinstance(draw.x, Tensor)
                report.point(
                    f"rare class {c}",
                    name,
                    seed=seed,
                    distance=metrics.energy_distance(draw.x, held_out),
                    right=float((classifier.predict(draw.x) == c).double().mean()),
                    nearest=metrics.nearest_distance(draw.x, train[few[c]]),
                    coverage=metrics.nearest_distance(held_out, draw.x),
                )
    for c in rare:
        _tell(report, f"rare class {c}")
    report.notes.append(
        f"rare classes: the large prior sees {FEW} images of each class in {RARE}, a small model the {FEW} of its "
        "class; coverage is the median distance of held-out digits to the nearest draw."
    )


def _some(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:FEW]]


def _trained(x: Tensor, centre: Tensor, how: dict[str, Any], seed: int, settings: Settings) -> EnergyDiffusion:
    model = seeded(
        lambda: EnergyDiffusion(
            UNet(1, hidden=how["hidden"]),
            (1, 8, 8),
            sigma_data=0.55,
            sigma_detail=0.05,
            sigma_range=(0.03, 20.0),
            noise=(-0.8, 1.3),
            level_weight=0.05,
            loc=centre,
        ),
        seed,
    )
    steps = settings.size(how["steps"], 5)
    fit(
        model, x, steps=steps, batch_size=how["batch_size"], lr=2e-3, ema=how["ema"], seed=seed, progress=False
    )  # fmt: skip
    return model.eval()


def _tell(report: Report, task: str) -> None:
    found = {
        name: {key: statistics.fmean(p[key] for p in points) for key in ("distance", "right", "nearest", "coverage")}
        for name, points in report.curves[task].items()
    }
    for name, means in found.items():
        note = (
            f"{100 * means['right']:.0f} % recognised; nearest of the few {means['nearest']:.2f}; "
            f"coverage {means['coverage']:.2f}"
        )
        report.tell(task, f"energy distance to held-out digits, {name}", means["distance"], note)
    best = {
        kind: min((means["distance"], name) for name, means in found.items() if name.startswith(kind + ","))
        for kind in ("small", "small * large")
    }
    ratio = best["small * large"][0] / best["small"][0]
    note = f"{best['small * large'][1]}, over {best['small'][1]}"
    report.check(task, "energy distance, best product over best small model alone", ratio, "≤", 1.0, note)
