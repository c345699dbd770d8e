"""Which trained prior belongs to which environment, and where its weights are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from boltzmix.benchmarks.planning.options import PRIORS
from boltzmix.benchmarks.report import Report
from boltzmix.compose.term import Term
from boltzmix.models.load import WEIGHTS, card, load

TRAINED = Path("runs/weights")
"""Where ``python -m boltzmix train`` writes; other training seeds lie in its folders ``seed1``, ``seed2``, …"""


class MissingWeights(ValueError):
    """No weights where they were looked for; the message says how to make them."""


def folders(seed: int = 0) -> list[Path]:
    """Where the weights of a training seed are looked for, in order: this machine's own runs before what ships."""
    return [TRAINED, TRAINED / "seed0", WEIGHTS] if seed == 0 else [TRAINED / f"seed{seed}"]


def find(name: str, seed: int = 0) -> Path:
    """The file of weights called ``name``.

    Raises:
        MissingWeights: there is none.
    """
    for folder in folders(seed):
        path = folder / f"{name}.safetensors"
        if path.exists():
            return path
    where = ", ".join(map(str, folders(seed)))
    out = "" if seed == 0 else f" --out {TRAINED / f'seed{seed}'}"
    collect = f"python -m boltzmix collect {name} && " if name.startswith("pointmaze") else ""
    raise MissingWeights(
        f"no weights called {name!r} in {where}; make them: {collect}python -m boltzmix train {name} --seed {seed}{out}"
    )


def prior_of(environment: str, seed: int = 0) -> Term:
    """The trajectory prior for an environment.

    Raises:
        MissingWeights: it was not trained.
        ValueError: an environment that has none.
    """
    name = PRIORS.get(environment)
    if name is None:
        raise ValueError(f"no prior belongs to {environment!r}; there are priors for {', '.join(PRIORS)}")
    path = find(name, seed)
    return load(name, path.parent)


def trained(report: Report, environment: str, seeds: Sequence[int]) -> Iterator[tuple[int, Term]]:
    """The priors of an environment by training seed; one that is missing is a visible row."""
    for seed in seeds:
        try:
            prior = prior_of(environment, seed)
        except MissingWeights as error:
            report.skip(f"{environment}, training seed {seed}", str(error))
        else:
            yield seed, prior


def provenance(environment: str, seed: int = 0) -> str:
    """Which weights a table stands on: their name, training seed, and the first digits of their SHA-256."""
    path = find(PRIORS[environment], seed)
    return f"weights {path.stem}, training seed {seed}: SHA-256 {card(path.stem, path.parent)['sha256'][:12]}…"
