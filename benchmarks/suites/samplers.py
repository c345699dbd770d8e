r"""Our samplers and those of other libraries on targets of known truth, by counted gradients.

Sections are the files of :mod:`boltzmix.benchmarks.densities`: ``gaussians``, ``regressions``, …, each with its
targets. On each target every method starts at the same points, in the same run, in float64 and on one thread, with the
settings that it has by itself or that its documentation recommends. The table of a target ranks methods by the
gradients of one chain, warm-up apart, after which :math:`b_\text{max}^2` stays below 0.01
(:mod:`boltzmix.benchmarks.bias`), the median over chains and seeds; those with a bias that is more than chance come
after those without, and none is left out.

Judged are: that each of our samplers ran and was counted as it says; that those of ours that are exact show no bias
where their chains agree; and, on the ill-conditioned Gaussian and the logistic regression, that one of ours needs fewer
gradients than BlackJAX's NUTS.

With ``out`` a command goes on where an earlier one was stopped. Libraries that are not installed are rows that say so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boltzmix.benchmarks.comparison import Comparison
from boltzmix.benchmarks.densities import DENSITIES, Density, density
from boltzmix.benchmarks.methods import Budget
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.benchmarks.standing import THRESHOLD, Standing
from boltzmix.benchmarks.sweep import compare

#: of ours, where all variables are real; the exact ones first
EXACT = ("NUTS", "HMC, ChEES", "MALA", "Barker", "adjusted MCLMC")
BIASED = ("MCLMC", "underdamped", "ULA")
#: and where modes are far apart, or a normalising constant is asked for
TEMPERED = ("tempering", "SMC")
DISCRETE = ("Gibbs", "Gibbs with gradients")
PEERS = ("BlackJAX NUTS", "BlackJAX MCLMC", "BlackJAX adjusted MCLMC", "NumPyro NUTS")
#: libraries that take hundreds of times as long, on these targets only, with a limit on the time of one run
SLOW = ("Pyro NUTS", "hamiltorch HMC", "torchebm HMC", "torchebm Langevin")
SLOW_ON = ("eight_schools", "ill_conditioned", "logistic_regression")
SLOW_SECONDS = 60.0
#: where one of ours is to need fewer gradients than this peer
JUDGED, RIVAL = ("ill_conditioned", "logistic_regression"), "BlackJAX NUTS"
_CHAINS, _GRADIENTS = 16, 10_000
_NUMBERS = 2**26  # of the draws of a run, at most


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 5,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
    *,
    targets: Sequence[str] | None = None,
    jobs: int = 1,
    backend: str = "loky",
    peers: bool = True,
) -> Report:
    """Run the suite.

    Args:
        out: folder to write to, and to go on from.
        quick: smaller sizes.
        seeds: of starts and samplers, how many or which.
        only: groups of targets.
        progress: say on stderr what is running.
        targets: names; None runs all.
        jobs: processes.
        backend: of joblib.
        peers: whether other libraries run.

    Raises:
        ValueError: unknown names.
    """
    folder = Path(out) if out is not None else Path("runs") / "samplers" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    chosen = list(DENSITIES) if targets is None else list(targets)
    if unknown := sorted(set(chosen) - set(DENSITIES)):
        raise ValueError(f"there are no targets {unknown}; there are {', '.join(DENSITIES)}")
    grouped = groups(chosen)
    options = {"jobs": jobs, "backend": backend, "progress": progress, "peers": peers, "out": folder}

    def section(names: Sequence[str]) -> Callable[[Report, Settings], None]:
        return lambda report, settings: sweep(report, settings, names, **options)

    sections = [(group, section(names)) for group, names in grouped.items()]
    title = "Samplers on known truths: gradients until their moments are right"
    said = " ".join(
        ["" if targets is None else f"--targets {' '.join(targets)}", "" if peers else "--no-peers"]
    ).strip()
    return run_sections(
        "samplers", title, sections, out=folder, quick=quick, seeds=seeds, only=only, progress=progress, said=said
    )


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Targets by the file that they are written in."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(str(getattr(DENSITIES[name], "__module__", "others")).rpartition(".")[2], []).append(name)
    return found


def setting(target: Density, settings: Settings) -> tuple[Budget, int]:
    """What a run may spend, and its chains: less where draws would not fit into memory."""
    chains = settings.size(_CHAINS if target.dim <= 500 else _CHAINS // 2, 8)
    gradients = min(settings.size(_GRADIENTS, 1500), _NUMBERS // (chains * target.dim))
    transitions = settings.size(1000 if target.dim <= 500 else 500, 150)
    return Budget(transitions, transitions, gradients), chains


def methods(target: Density) -> list[str]:
    """Ours that make sense on a target."""
    if target.support != "real":
        return list(DISCRETE)
    split = target.modes is not None or target.reference is not None
    return [*EXACT, *BIASED, *(TEMPERED if split else ())]


def rivals(target: Density) -> dict[str, Any]:
    """Other libraries' samplers for a target, by their names."""
    if target.support != "real":
        return {}
    from boltzmix.benchmarks.peers import PEERS as known
    from boltzmix.benchmarks.peers import limited

    found: dict[str, Any] = {name: known[name] for name in PEERS}
    if target.name in SLOW_ON:
        found |= {name: limited(known[name], SLOW_SECONDS) for name in SLOW}
    return found


def sweep(report: Report, settings: Settings, names: Sequence[str], *, peers: bool, out: Path, **options: Any) -> None:
    """All methods on the targets of a group; one target after the other, so that what is finished is written."""
    for name in names:
        target = density(name)
        budget, chains = setting(target, settings)
        found = compare(
            name, methods(target), budget, settings.seeds, rivals(target) if peers else (), chains=chains,
            out=out / "targets" / name, **options,
        )  # fmt: skip
        describe(report, found, name)


def describe(report: Report, found: Comparison, name: str) -> None:
    """The table, the curves, and what is judged."""
    table = found.markdown().split("\n\n" + found.legend()[0])[0]
    report.summary = f"{report.summary}\n\n{table}".strip()
    for s in found.standings[name]:
        row = {
            "seed": None, "rank": s.rank, "status": s.status, "to_average": s.to_average, "to_largest": s.to_largest,
            "spread": list(s.spread), "average": s.average, "largest": s.largest, "bias": s.bias.floor,
            "counted": s.counted, "note": s.note, **s.numbers,
        }  # fmt: skip
        report.point(name, s.method, **row, curve=_thinned(found.curve(name, s.method)))
        if s.status == "skipped":
            report.skip(name, f"{s.method}: {s.note}")
    report.figures[f"curves-{name}"] = lambda figure: found.draw(figure, name)
    for note in found.legend():
        if note and note not in report.notes:
            report.notes.append(note)
    ours = [s for s in found.standings[name] if s.method in (*EXACT, *BIASED, *TEMPERED, *DISCRETE)]
    wrong = [f"{s.method}: {s.note}" for s in ours if s.status in ("miscounted", "failed")]
    report.state(name, "ours ran, and were counted as they say", not wrong, "yes", "; ".join(wrong))
    settled = [s for s in ours if s.method in (*EXACT, *DISCRETE) and s.numbers.get("rhat", math.nan) <= 1.05]
    for s in settled:
        quantity = f"{s.method}: worst error of a moment over what chance allows"
        report.check(name, quantity, s.bias.worst / s.bias.allowed, "≤", 1.0, f"R-hat {s.numbers['rhat']:.3f}")
    if name in JUDGED:
        _fewer(report, name, {s.method: s for s in found.standings[name]}, ours)


def _fewer(report: Report, name: str, standings: Mapping[str, Standing], ours: Sequence[Standing]) -> None:
    """Gradients to the threshold against the rival's, where it ran."""
    rival = standings.get(RIVAL)
    quantity = f"gradients to b_max² < {THRESHOLD:g}, ratio to {RIVAL}"
    if rival is None or rival.status in ("skipped", "failed"):
        report.skip(name, f"{quantity}: {RIVAL} {'did not run' if rival is None else rival.note}")
        return
    reached = not math.isnan(rival.to_largest)
    theirs = rival.to_largest if reached else rival.numbers["gradients"]
    words = "" if reached else f"; the peer does not get there with its {theirs:.0f}, which stand for it"
    good = [s for s in ours if s.status == "ok" and not math.isnan(s.to_largest)]
    for s in sorted(good, key=lambda s: s.to_largest):
        note = f"{s.to_largest:.0f} ({s.spread[0]:.0f} … {s.spread[1]:.0f} over seeds) against {theirs:.0f}"
        report.tell(name, f"{quantity}, {s.method}", s.to_largest / theirs, note + words)
    best = min((s.to_largest for s in good), default=math.nan)
    who = ", ".join(s.method for s in good if s.to_largest < theirs)
    report.check(name, f"{quantity}, the best of ours without bias", best / theirs, "≤", 1.0, f"below: {who}{words}")


def _thinned(curve: Mapping[str, list[float]], most: int = 60) -> dict[str, list[float]]:
    step = max(1, math.ceil(len(curve["gradients"]) / most))
    return {name: [float(f"{v:.3g}") for v in values[::-step][::-1]] for name, values in curve.items()}
