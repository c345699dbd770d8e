"""Hard targets: separated modes, many wells, a funnel, a magnet at its critical point, each against an exact answer.

Sections: ``modes`` 40 Gaussians in the plane and 25 narrow ones, by SMC and by parallel tempering from a Gaussian that
knows the extent of the target and none of its modes, and by the default SMC, which is told nothing; ``wells`` ManyWell
in 32 dimensions; ``funnel`` Neal's funnel in 10, centred and written without its neck, and what NUTS says of itself on
the centred one; ``ising`` Ising 6 × 6 by every discrete kernel. Evaluations are rows for each particle or chain.
"""

import math
import statistics
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks import hard_targets, metrics
from boltzmix.benchmarks.hard_targets import HardTarget
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.compose.callables import term
from boltzmix.compose.draw import Draw
from boltzmix.compose.kernels import HMC, NUTS, Kernel, ParallelTempering
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC


def run(
    out: str | Path | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = 3,
    only: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Run the suite; see :func:`boltzmix.benchmarks.runner.run_sections` for the arguments."""
    sections = [("modes", modes), ("wells", wells), ("funnel", funnel), ("ising", ising)]
    return run_sections(
        "hard", "Hard targets against exact answers", sections, out=out, quick=quick, seeds=seeds, only=only,
        progress=progress,
    )  # fmt: skip


def tempering(target: HardTarget, chains: int, draws: int, warmup: int, seed: int, leapfrogs: int = 3) -> Draw:
    """Parallel tempering with HMC from the target's reference."""
    kernel = ParallelTempering(HMC(num_leapfrog=leapfrogs), reference=target.reference)
    return sample(target.term, chains=chains, sampler=MCMC(kernel, warmup=warmup, draws=draws), seed=seed)


def flat(draw: Draw) -> Tensor:
    """All draws of all chains, ``(n, D)``."""
    assert isinstance(draw.x, Tensor)
    return draw.x.reshape(-1, draw.x.shape[-1])


def ladder(draw: Draw) -> dict[str, Any]:
    """What parallel tempering says of itself."""
    names = ("temperatures", "swap_acceptance", "round_trips", "barrier")
    return {name: draw.info.extra[name] for name in names if name in draw.info.extra}


def point(report: Report, task: str, method: str, draw: Draw, seed: int, **numbers: Any) -> None:
    """One run of a method."""
    report.point(
        task, method, seed=seed, n=len(flat(draw)), log_z=draw.log_z, log_z_se=draw.log_z_se,
        evaluations=draw.info.evaluations, seconds=draw.info.seconds, **numbers, **ladder(draw),
    )  # fmt: skip


def worst(points: Sequence[dict[str, Any]], name: str) -> float:
    """The largest absolute value over seeds."""
    return max(abs(p[name]) for p in points)


def costs(points: Sequence[dict[str, Any]]) -> str:
    """n, evaluations and seeds, for a row's note."""
    spent = statistics.fmean(p["evaluations"] for p in points)
    return f"n = {points[0]['n']}, {spent:.0f} evaluations, worst of {len(points)} seeds"


# -------------------------------------------------------------------------- modes


def modes(report: Report, settings: Settings) -> None:
    """Mode masses beyond those of exact draws, and log Z."""
    for target in (hard_targets.forty_modes(), hard_targets.grid()):
        n, chains = settings.size(20_000, 1000), settings.size(40, 20)
        draws = settings.size(1000, 50)
        floors = {count: mode_floor(target, count) for count in {n, chains * draws}}
        for count, floor in floors.items():
            report.tell(target.name, "total variation of mode masses, exact draws", floor, f"n = {count}")
        kept: dict[str, Tensor] = {}
        for seed in settings.seeds:
            for method in ("SMC from the reference", "parallel tempering", "SMC as it comes"):
                if method == "parallel tempering":
                    draw = tempering(target, chains, draws, settings.size(300, 100), seed)
                else:
                    init = target.reference if method == "SMC from the reference" else None
                    draw = sample(target.term, n, sampler=SMC(), init=init, seed=seed)
                assert target.truth is not None
                found = metrics.mode_error(target.truth, flat(draw))
                point(report, target.name, method, draw, seed, tv=found, excess=found - floors[len(flat(draw))])
                kept.setdefault(method, flat(draw))
        judge_modes(report, target)
        report.figures[target.name.replace(" ", "-").lower()] = _scatter(target, kept)
    report.notes.append(
        "modes: the reference is N(0, v I) with v = 40² / 3 and 2, the extent of the modes; parallel tempering runs "
        f"HMC with 3 leapfrogs in {chains} chains of {draws} draws, its number of temperatures adapted."
    )


def judge_modes(report: Report, target: HardTarget) -> None:
    """Rows for the points that were found."""
    for method, points in report.curves[target.name].items():
        excess = max(p["excess"] for p in points)
        report.check(target.name, f"{method}: mode masses beyond exact draws", excess, "≤", 0.05, costs(points))
        report.check(target.name, f"{method}: |log Z error|", worst(points, "log_z"), "≤", 0.1, error_bar(points))


def mode_floor(target: HardTarget, n: int, sets: int = 5) -> float:
    """Mean total variation of the mode masses of exact draws."""
    assert target.truth is not None
    generator = torch.Generator().manual_seed(987)
    return statistics.fmean(metrics.mode_error(target.truth, target.exact(n, generator)) for _ in range(sets))


def error_bar(points: Sequence[dict[str, Any]]) -> str:
    """The standard errors that the runs report."""
    return "reported standard errors " + ", ".join(f"{p['log_z_se']:.3f}" for p in points)


def _scatter(target: HardTarget, kept: dict[str, Tensor]) -> Any:
    exact = target.exact(2000, torch.Generator().manual_seed(1))

    def draw(figure: Any) -> None:
        panels = {"exact": exact, **kept}
        figure.set_size_inches(3.2 * len(panels), 3.4)
        for axis, (name, x) in zip(figure.subplots(1, len(panels), sharex=True, sharey=True), panels.items(),
                                   strict=True):  # fmt: skip
            rows = x[torch.linspace(0, len(x) - 1, min(len(x), 2000)).long()]
            axis.plot(rows[:, 0], rows[:, 1], ".", markersize=1.5, alpha=0.5)
            axis.set_title(name, fontsize=9)
            axis.set_aspect("equal")

    return draw


# -------------------------------------------------------------------------- wells


def wells(report: Report, settings: Settings) -> None:
    """The mass of the right well of each of 16 copies, and log Z."""
    target, right = hard_targets.many_well(), hard_targets.right_mass()
    chains, draws, warmup = settings.size(320, 16), settings.size(1200, 60), settings.size(1000, 100)
    generator = torch.Generator().manual_seed(5)
    exact = target.exact(settings.size(20_000, 1000), generator)
    report.tell(target.name, "largest error of 16 masses, exact draws", error_of(exact, right), f"n = {len(exact)}")
    for seed in settings.seeds:
        draw = tempering(target, chains, draws, warmup, seed, leapfrogs=8)
        point(
            report, target.name, "parallel tempering", draw, seed, mass=error_of(flat(draw), right),
            log_z_error=(draw.log_z or math.nan) - target.log_z,
        )  # fmt: skip
        particles = settings.size(50_000, 1000)
        draw = sample(target.term, particles, sampler=SMC(), init=target.reference, seed=seed)
        point(
            report, target.name, "SMC from the reference", draw, seed, mass=error_of(flat(draw), right),
            log_z_error=(draw.log_z or math.nan) - target.log_z,
        )  # fmt: skip
    judge_wells(report, target)
    report.notes.append(
        f"wells: the right well of a copy has mass {right:.4f}, log Z = {target.log_z:.4f}, by quadrature; the "
        f"reference is N(0, 4 I); HMC with 8 leapfrogs in {chains} chains of {draws} draws after {warmup} of warm-up: "
        "replicas forget where they started only after several hundred transitions."
    )


def judge_wells(report: Report, target: HardTarget) -> None:
    """Rows for the points that were found."""
    for method, points in report.curves[target.name].items():
        what = f"{method}: largest error of a well's mass"
        if method == "parallel tempering":
            report.check(target.name, what, worst(points, "mass"), "≤", 0.02, costs(points))
            report.check(
                target.name, f"{method}: |log Z error|", worst(points, "log_z_error"), "≤", 0.1, error_bar(points)
            )  # fmt: skip
        else:
            report.tell(target.name, what, worst(points, "mass"), costs(points))
            report.tell(target.name, f"{method}: |log Z error|", worst(points, "log_z_error"), error_bar(points))


def error_of(x: Tensor, right: float) -> float:
    """The largest error of the masses of right wells."""
    return float((hard_targets.right_masses(x) - right).abs().max())


# ------------------------------------------------------------------------- funnel


def uncentred(dim: int = 10) -> Any:
    """The funnel over (v, z) with x = e^{v/2} z."""

    def log_prob(y: Tensor) -> Tensor:
        return -0.5 * (y[:, 0] / 3) ** 2 - 0.5 * (y[:, 1:] ** 2).sum(1)

    return term(log_prob, kind="log_prob", event_shape=(dim,), name="funnel, uncentred")


def funnel(report: Report, settings: Settings) -> None:
    """The standard deviation of the neck, 3, and what NUTS reports where it fails."""
    target = hard_targets.funnel()
    chains, draws = settings.size(64, 16), settings.size(1200, 60)
    warmup = settings.size(400, 60)
    centred: dict[str, Kernel] = {
        "NUTS": NUTS(),
        "parallel tempering of HMC": ParallelTempering(HMC(num_leapfrog=5), reference=target.reference),
    }
    kept: dict[str, Tensor] = {"exact": target.exact(4000, torch.Generator().manual_seed(1))}
    for seed in settings.seeds:
        for method, kernel in centred.items():
            alone = "NUTS" in method
            sampler = MCMC(kernel, warmup=warmup, draws=draws // 2 if alone else draws)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw = sample(target.term, chains=chains // 4 if alone else chains, sampler=sampler, seed=seed)
            codes = [finding["code"] for finding in draw.info.extra.get("warnings", [])]
            _neck(report, f"{method}, centred", draw, seed, codes)
            kept.setdefault(method, flat(draw))
        draw = sample(uncentred(), chains=chains // 4, sampler=MCMC(NUTS(), warmup=warmup, draws=draws), seed=seed)
        assert isinstance(draw.x, Tensor)
        _neck(report, "NUTS, x = exp(v/2) z", draw, seed, [f["code"] for f in draw.info.extra.get("warnings", [])])
        y = flat(draw)
        kept.setdefault("NUTS, x = exp(v/2) z", torch.cat([y[:, :1], (0.5 * y[:, :1]).exp() * y[:, 1:]], 1))
    for method, points in report.curves["funnel"].items():
        error = max(abs(p["sd"] / 3 - 1) for p in points)
        found = ", ".join(f"{p['sd']:.3f} ± {p['se']:.3f}" for p in points)
        note = f"sd {found}; {costs(points)}"
        if method.endswith("z"):
            report.check("funnel", f"{method}: relative error of the neck's sd", error, "≤", 0.05, note)
        else:
            report.tell("funnel", f"{method}: relative error of the neck's sd", error, note)
        if method == "NUTS, centred":
            fired = [sorted(set(p["codes"])) for p in points]
            wanted = {"divergences", "energy", "multimodal", "slow-mixing", "short-warmup", "stuck"}
            report.state(
                "funnel", "NUTS, centred: warns of its failure", all(wanted & set(f) for f in fired), "every seed",
                "; ".join(", ".join(f) for f in fired),
            )  # fmt: skip
    report.figures["funnel"] = _necks(kept)


def _neck(report: Report, method: str, draw: Draw, seed: int, codes: list[str]) -> None:
    assert isinstance(draw.x, Tensor)
    v = draw.x[..., 0].double()
    means = (v * v).mean(1)  # of each chain
    sd = math.sqrt(float(means.mean()))
    se = float(means.std()) / math.sqrt(len(means)) / (2 * sd)
    point(
        report, "funnel", method, draw, seed, sd=sd, se=se, lowest=float(v.min()), codes=codes,
        divergences=draw.info.divergences,
    )  # fmt: skip


def _necks(kept: dict[str, Tensor]) -> Any:
    def draw(figure: Any) -> None:
        figure.set_size_inches(3.2 * len(kept), 3.4)
        for axis, (name, x) in zip(figure.subplots(1, len(kept), sharex=True, sharey=True), kept.items(), strict=True):
            rows = x[torch.linspace(0, len(x) - 1, min(len(x), 4000)).long()]
            axis.plot(rows[:, 1].clamp(-25, 25), rows[:, 0], ".", markersize=1.5, alpha=0.5)
            axis.set_title(name, fontsize=9)
            axis.set_xlim(-25, 25)
            axis.axhline(-6, color="0.6", linewidth=0.8)

    return draw


# -------------------------------------------------------------------------- ising


def ising(report: Report, settings: Settings) -> None:
    """Energies and magnetisations by kernel and temperature, in standard errors."""
    if find_spec("boltzmix.benchmarks.ising") is None:
        report.skip("Ising 6 × 6", "boltzmix.benchmarks.ising is not there")
        return
    from boltzmix.benchmarks.ising import ising_rows

    rows = ising_rows(settings.seeds, quick=settings.quick)
    for row in rows:
        report.point("Ising 6 × 6", row["kernel"], **row)
    for kernel, points in report.curves["Ising 6 × 6"].items():
        for beta in sorted({p["beta"] for p in points}):
            own = [p for p in points if p["beta"] == beta]
            task = f"Ising 6 × 6, T = {1 / beta:.3f}"
            note = (
                f"energy {own[0]['energy']:.3f} ± {own[0]['energy_se']:.3f} against {own[0]['energy_exact']:.3f}; "
                f"|m| {own[0]['magnetisation']:.4f} ± {own[0]['magnetisation_se']:.4f} against "
                f"{own[0]['magnetisation_exact']:.4f}; worst of {len(own)} seeds"
            )
            found = max(max(abs(p["energy_z"]), abs(p["magnetisation_z"])) for p in own)
            report.check(task, f"{kernel}: error of energy and |m| in standard errors", found, "≤", 4.5, note)
