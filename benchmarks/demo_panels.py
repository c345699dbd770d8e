"""The panels of the demo: what is composed, with which sampler, and how each is judged."""

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix import models
from boltzmix.benchmarks.demo_planning import Planned
from boltzmix.benchmarks.metrics import bandwidths, kernel_mean, nearest_distance, self_mean
from boltzmix.benchmarks.targets import Grid, bar, toy
from boltzmix.compose.constraints import Clamp, bounded_negation
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import NonFinite, NotNormalizable, SamplingWarning
from boltzmix.compose.mixture import mixture
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import SMC, Annealed
from boltzmix.compose.term import Term

Formula = Callable[..., Term]


@dataclass(frozen=True)
class Plane:
    """A panel in the plane: a formula over two of ring, line, circle and bar.

    Attributes:
        name: what was composed, in words.
        formula: as a user writes it.
        factors: names of the models, in the order that ``build`` takes them.
        build: the formula over terms, networks or exact densities.
    """

    name: str
    formula: str
    factors: tuple[str, ...]
    build: Formula


@dataclass(frozen=True)
class Digits:
    """A panel of digits: a formula over one network.

    Attributes:
        name: what was composed, in words.
        formula: as a user writes it.
        build: from the network and the images that are to be completed.
        right: whether a draw is what was asked, from the classifier's labels and the true ones; None where any
            digit is.
        real: which held-out labels are an example of the same.
        truth: whether those real digits are the truth of the formula, and not only examples.
    """

    name: str
    formula: str
    build: Callable[[Any, Tensor], Term]
    right: Callable[[Tensor, Tensor], Tensor] | None
    real: Callable[[Tensor], Tensor]
    truth: bool = False


PLANE = (
    Plane("product", "ring * line", ("ring", "line"), lambda p, q: p * q),
    Plane("product", "circle * bar", ("circle", "bar"), lambda p, q: p * q),
    Plane("mixture", "0.3 * circle + 0.7 * bar", ("circle", "bar"), lambda p, q: 0.3 * p + 0.7 * q),
    Plane("negation", "bounded_negation(line, ring, 3)", ("line", "ring"), lambda p, q: bounded_negation(p, q, 3.0)),
    Plane("negation", "ring * (ring / line) ** 0.5", ("ring", "line"), lambda p, q: p * (p / q) ** 0.5),
    Plane("power", "line ** 3", ("line",), lambda p: p**3),
)

UPPER = torch.zeros(1, 8, 8, dtype=torch.bool)
UPPER[:, :4] = True


def _any(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def _three(labels: Tensor) -> Tensor:
    return labels == 3


def _three_or_eight(labels: Tensor) -> Tensor:
    return (labels == 3) | (labels == 8)


def _guided(power: int) -> Digits:
    name = "guidance, power 1: class 3" if power == 1 else f"guidance, power {power}"
    return Digits(
        name,
        f"p * (p3 / p) ** {power}",
        lambda p, x: p * (p.given(label=3) / p) ** power,
        lambda found, wanted: _three(found),
        _three,
        truth=power == 1,
    )


DIGITS = (
    Digits("no condition", "p", lambda p, x: p, None, _any, truth=True),
    _guided(1),
    _guided(2),
    _guided(4),
    Digits(
        "mixture: 3 or 8",
        "mixture([p3, p8])",
        lambda p, x: mixture([p.given(label=3), p.given(label=8)]),
        lambda found, wanted: _three_or_eight(found),
        _three_or_eight,
        truth=True,
    ),
    Digits(
        "product: 3 and 8",
        "p3 * p8 / p",
        lambda p, x: p.given(label=3) * p.given(label=8) / p,
        lambda found, wanted: _three_or_eight(found),
        _three_or_eight,
    ),
    Digits(
        "negation: no 7, quotient",
        "p * (p / p7)",
        lambda p, x: p * (p / p.given(label=7)),
        lambda found, wanted: found != 7,
        lambda labels: labels != 7,
    ),
    Digits(
        "negation: no 7, bounded",
        "bounded_negation(p, p7, 2)",
        lambda p, x: bounded_negation(p, p.given(label=7), 2.0),
        lambda found, wanted: found != 7,
        lambda labels: labels != 7,
    ),
    Digits(
        "completing the lower half",
        "p * Clamp(upper, digits)",
        lambda p, x: p * Clamp(UPPER, x),
        lambda found, wanted: found == wanted,
        _any,
        truth=True,
    ),
)


@dataclass(frozen=True)
class Setting:
    """What holds for all panels of a run.

    Attributes:
        plane, digits: the samplers.
        points, images: draws per panel.
        judged: points that enter a distance.
        sets: exact sets, whose pairs make the floor.
        cells: of a grid, per dimension.
        naive: what composes by summing scores, for comparison.
        seed: of every panel.
    """

    plane: Sampler
    digits: Sampler
    points: int
    images: int
    judged: int
    sets: int
    cells: int
    naive: Sampler
    seed: int


def full(seed: int = 0) -> Setting:
    """The demo's settings."""
    return Setting(SMC(), Annealed(levels=64, sweeps=1), 4000, 48, 2000, 4, 480, Reverse(steps=50), seed)


def quick(seed: int = 0) -> Setting:
    """Small ones, to see that everything runs."""
    return Setting(SMC(cess=0.9), Annealed(levels=6, sweeps=1), 300, 8, 300, 2, 160, Reverse(steps=8), seed)


@dataclass
class Panel:
    """What became of one panel; ``pictures`` holds arrays for the sheets and stays out of results.json.

    Attributes:
        gallery: ``"plane"`` or ``"digits"``.
        name, formula: of the composition.
        sampler: as Python writes it.
        distance: √MMD² to the truth; None where that is unknown.
        floor: of exact draws (plane) or real digits.
        to_formula: √MMD² to the same formula over the networks' own energies.
        naive: √MMD² to the truth of reverse diffusion on summed scores.
        log_z, log_z_se, log_z_exact: of the formula; the last of its true counterpart.
        log_z_formula: of the formula over the networks' energies, on the grid.
        right, right_real: share judged to be what was asked, of draws and of real digits.
        right_guess: when completing, the share that the nearest training digit, by the given half alone, gets right.
        nearest, nearest_real: median distance to the nearest training digit, of draws and of held-out digits.
        evaluations, acceptance, seconds: of the sampler.
        warnings: what the sampler warned about.
        error: why there is no draw.
    """

    gallery: str
    name: str
    formula: str
    sampler: str
    n: int
    distance: float | None = None
    floor: float | None = None
    to_formula: float | None = None
    naive: float | None = None
    log_z: float | None = None
    log_z_se: float | None = None
    log_z_exact: float | None = None
    log_z_formula: float | None = None
    right: float | None = None
    right_real: float | None = None
    right_guess: float | None = None
    nearest: float | None = None
    nearest_real: float | None = None
    evaluations: float = math.nan
    acceptance: float = math.nan
    seconds: float = math.nan
    work_seconds: float = math.nan
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    pictures: dict[str, Any] = field(default_factory=dict, repr=False)

    def badness(self) -> float:
        """What panels of a gallery are sorted by: distance over floor, or the share that is not what was asked."""
        if self.error:
            return math.inf
        if self.gallery == "plane":
            assert self.distance is not None
            assert self.floor is not None
            return self.distance / self.floor
        return 0.0 if self.right is None or self.right_real is None else self.right_real - self.right


@dataclass
class Report:
    """A finished demo."""

    out: Path
    panels: list[Panel]
    seconds: float
    planned: list[Planned] = field(default_factory=list)

    @property
    def failed(self) -> list[Panel]:
        """Panels without a draw."""
        return [p for p in self.panels if p.error]


def setting_of(small: bool, seed: int) -> Setting:
    return quick(seed) if small else full(seed)


def panel(gallery: str, index: int, small: bool, seed: int, folder: str) -> Panel:
    """Sample and judge one panel; what the composition itself makes impossible becomes its ``error``."""
    clock = time.perf_counter()
    setting = setting_of(small, seed)
    item = (PLANE if gallery == "plane" else DIGITS)[index]
    sampler = setting.plane if gallery == "plane" else setting.digits
    n = setting.points if gallery == "plane" else setting.images
    made = Panel(gallery, item.name, item.formula, short(sampler), n)
    try:
        if isinstance(item, Plane):
            _judge_plane(item, setting, made)
        else:
            _judge_digits(item, setting, made, Path(folder))
    except (NotNormalizable, NonFinite) as error:
        made.error = f"{type(error).__name__}: {error}"
    made.work_seconds = time.perf_counter() - clock
    return made


def short(sampler: Sampler) -> str:
    """The sampler as a user writes it: only what differs from the defaults."""
    default = type(sampler)()
    changed = {k: v for k, v in vars(sampler).items() if v != getattr(default, k) or k in ("levels", "sweeps", "steps")}
    if isinstance(sampler, SMC):
        changed = {k: v for k, v in changed.items() if k != "levels" or v != "adaptive"}
    return f"{type(sampler).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


@functools.cache
def _load(name: str) -> Any:
    return models.load(name)


def _sampled(target: Term, n: int, sampler: Sampler, made: Panel, seed: int) -> Draw:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SamplingWarning)
        draw = sample(target, n, sampler=sampler, seed=seed, progress=False)
    made.warnings = sorted({str(w.message) for w in caught if issubclass(w.category, SamplingWarning)})
    made.evaluations, made.acceptance, made.seconds = draw.info.evaluations, draw.info.acceptance, draw.info.seconds
    made.log_z, made.log_z_se = draw.log_z, draw.log_z_se
    return draw


# ------------------------------------------------------------------- the plane


def _judge_plane(item: Plane, setting: Setting, made: Panel) -> None:
    networks = [_load(name) for name in item.factors]
    truths = [(bar() if name == "bar" else toy(name)).double() for name in item.factors]
    side = (-3.0, -3.0), (3.0, 3.0)
    with torch.no_grad():
        exact = item.build(*truths)
        made.log_z_exact, draw_exact = Grid(lambda x: exact.energy(x), *side, cells=setting.cells).solve()
        target = item.build(*networks)
        made.log_z_formula, draw_formula = Grid(lambda x: target.energy(x.float()), *side, cells=setting.cells).solve()
    draw = _sampled(target, setting.points, setting.plane, made, setting.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # that this one is biased is the point of it
        naive = sample(target, setting.points, sampler=setting.naive, seed=setting.seed, progress=False)
    generator = torch.Generator().manual_seed(10_000 + setting.seed)
    m = setting.judged
    squared = bandwidths(draw_exact(m, generator))
    sets = [draw_exact(m, generator) for _ in range(setting.sets)]
    own = [self_mean(x, squared, unbiased=False) for x in sets]
    pairs = [own[i] + own[j] - 2 * kernel_mean(sets[i], sets[j], squared) for i in range(len(sets)) for j in range(i)]
    made.floor = _root(_mean(pairs))

    def distance(x: Any) -> float:
        x = x[torch.randperm(len(x), generator=generator)[:m]]  # a mixture's draws come member by member
        alone = self_mean(x, squared, unbiased=False)
        return _root(_mean(alone + b - 2 * kernel_mean(x, y, squared) for y, b in zip(sets[:3], own, strict=False)))

    made.distance, made.naive = distance(draw.x), distance(naive.x)
    formula = draw_formula(m, generator)
    mine = draw.x[torch.randperm(setting.points, generator=generator)[:m]]  # pyright: ignore[reportArgumentType]
    both = self_mean(mine, squared, unbiased=False) + self_mean(formula, squared, unbiased=False)
    made.to_formula = _root(both - 2 * kernel_mean(mine, formula, squared))
    made.pictures = {
        "factors": [_heat(truth) for truth in truths],
        "exact": draw_exact(setting.points, generator).numpy(),
        "naive": naive.x.numpy(),  # pyright: ignore[reportAttributeAccessIssue]
        "draws": draw.x.numpy(),  # pyright: ignore[reportAttributeAccessIssue]
    }


VIEW = 1.9


def _heat(density: Any, cells: int = 120) -> Any:
    """p(x) on a grid over the view, for an image whose first row is at the bottom."""
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * VIEW - VIEW
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        energy = density.energy(torch.stack([x, y], -1).reshape(-1, 2))
    return (-energy).exp().reshape(cells, cells).numpy()


def _share(yes: Tensor) -> float:
    return float(yes.double().mean())


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0))


def _mean(values: Any) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


# ---------------------------------------------------------------------- digits


def _judge_digits(item: Digits, setting: Setting, made: Panel, folder: Path) -> None:
    network, classifier = _load("digits"), _load("digits-classifier")
    (train, train_label), (test, test_label) = models.data.digits("train"), models.data.digits("test")
    n = setting.images
    # digits to complete: held out, evenly spread over the test set, not chosen by how they look
    chosen = (torch.arange(n) * len(test)) // n
    given, wanted = test[chosen], test_label[chosen]
    animated = item.formula == "p * (p3 / p) ** 2"
    sampler = _recording(setting.digits) if animated else setting.digits
    draw = _sampled(item.build(network, given), n, sampler, made, setting.seed)
    x = draw.x
    assert isinstance(x, Tensor)
    if animated:
        draw.animate(folder / "path.gif", title=f"from noise to {item.formula}", limits=(-1.0, 1.0))
    with torch.no_grad():
        log_posterior = classifier.log_posterior(x)
    found = log_posterior.argmax(1)
    right = torch.ones(n, dtype=torch.bool) if item.right is None else item.right(found, wanted)
    completing = "Clamp" in item.formula
    real = item.real(test_label)
    if item.right is not None:
        made.right = _share(right)
        made.right_real = _share(item.right(classifier.predict(test[real]), test_label[real]))
    if completing:
        apart = torch.cdist(given[:, UPPER].double(), train[:, UPPER].double())
        made.right_guess = _share(train_label[apart.argmin(1)] == wanted)
    made.nearest = nearest_distance(x, train)
    made.nearest_real = nearest_distance(test[real], train)
    if item.truth:
        others = torch.ones(len(test), dtype=torch.bool)
        if completing:
            others[chosen] = False
        truth = test[real & others]
        example = train[item.real(train_label)]
        squared = bandwidths(example.flatten(1))
        reference = self_mean(truth, squared, unbiased=False)
        made.distance = _root(reference + self_mean(x, squared, unbiased=False) - 2 * kernel_mean(truth, x, squared))
        generator = torch.Generator().manual_seed(20_000 + setting.seed)
        floors = []
        for _ in range(10):
            y = example[torch.randperm(len(example), generator=generator)[:n]]
            floors.append(_root(reference + self_mean(y, squared, unbiased=False) - 2 * kernel_mean(truth, y, squared)))
        made.floor = _mean(floors)
    made.pictures = {
        "draws": x[:, 0].numpy(),
        "right": right.numpy(),
        "found": found.numpy(),
        "certain": log_posterior.max(1).values.exp().numpy(),
        "completing": completing,
    }
    if completing:
        made.pictures |= {"given": given[:, 0].numpy(), "wanted": wanted.numpy()}


def _recording(sampler: Sampler) -> Sampler:
    return replace(sampler, record=True)  # pyright: ignore[reportCallIssue]
