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

from boltzmix.benchmarks import metrics
from boltzmix.benchmarks.densities import Density, density
from boltzmix.benchmarks.densities.mixtures import components, right_mass, right_masses
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings, run_sections
from boltzmix.compose.draw import Draw
from boltzmix.compose.kernels import HMC, NUTS, Kernel, ParallelTempering
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.smc import SMC

#: what tables call the targets
TITLES = {"forty_modes": "40 modes", "grid": "25 Gaussians", "many_well": "ManyWell-32"}


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


def tempering(target: Density, chains: int, draws: int, warmup: int, seed: int, leapfrogs: int = 3) -> Draw:
    """Parallel tempering with HMC from the target's reference."""
    kernel = ParallelTempering(HMC(num_leapfrog=leapfrogs), reference=target.extent(torch.float32))
    return sample(
        target.term(torch.float32), chains=chains, sampler=MCMC(kernel, warmup=warmup, draws=draws), seed=seed
    )


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
    for target in (density("forty_modes"), density("grid")):
        title, truth = TITLES[target.name], components(target)
        n, chains = settings.size(20_000, 1000), settings.size(40, 20)
        length = settings.size(1000, 50)
        floors = {count: mode_floor(target, count) for count in {n, chains * length}}
        for count, floor in floors.items():
            report.tell(title, "total variation of mode masses, exact draws", floor, f"n = {count}")
        kept: dict[str, Tensor] = {}
        for seed in settings.seeds:
            for method in ("SMC from the reference", "parallel tempering", "SMC as it comes"):
                if method == "parallel tempering":
                    draw = tempering(target, chains, length, settings.size(300, 100), seed)
                else:
                    init = target.extent(torch.float32) if method == "SMC from the reference" else None
                    draw = sample(target.term(torch.float32), n, sampler=SMC(), init=init, seed=seed)
                found = metrics.mode_error(truth, flat(draw))
                point(report, title, method, draw, seed, tv=found, excess=found - floors[len(flat(draw))])
                kept.setdefault(method, flat(draw))
        judge_modes(report, target)
        report.figures[title.replace(" ", "-").lower()] = _scatter(target, kept)
    report.notes.append(
        "modes: the reference is N(0, v I) with v = 40² / 3 and 2, the extent of the modes; parallel tempering runs "
        f"HMC with 3 leapfrogs in {chains} chains of {length} draws, its number of temperatures adapted."
    )


def judge_modes(report: Report, target: Density) -> None:
    """Rows for the points that were found."""
    title = TITLES[target.name]
    for method, points in report.curves[title].items():
        excess = max(p["excess"] for p in points)
        report.check(title, f"{method}: mode masses beyond exact draws", excess, "≤", 0.05, costs(points))
        report.check(title, f"{method}: |log Z error|", worst(points, "log_z"), "≤", 0.1, error_bar(points))


def mode_floor(target: Density, n: int, sets: int = 5) -> float:
    """Mean total variation of the mode masses of exact draws."""
    truth = components(target)
    generator = torch.Generator().manual_seed(987)
    return statistics.fmean(metrics.mode_error(truth, draws(target, n, generator)) for _ in range(sets))


def draws(target: Density, n: int, generator: torch.Generator) -> Tensor:
    """Exact draws in float32, ``(n, D)``."""
    assert target.exact is not None
    return target.exact(n, generator).float()


def error_bar(points: Sequence[dict[str, Any]]) -> str:
    """The standard errors that the runs report."""
    return "reported standard errors " + ", ".join(f"{p['log_z_se']:.3f}" for p in points)


def _scatter(target: Density, kept: dict[str, Tensor]) -> Any:
    exact = draws(target, 2000, torch.Generator().manual_seed(1))

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
    target, right, title = density("many_well"), right_mass(), TITLES["many_well"]
    assert target.log_z is not None
    chains, kept, warmup = settings.size(320, 16), settings.size(1200, 60), settings.size(1000, 100)
    generator = torch.Generator().manual_seed(5)
    exact = draws(target, settings.size(20_000, 1000), generator)
    report.tell(title, "largest error of 16 masses, exact draws", error_of(exact, right), f"n = {len(exact)}")
    for seed in settings.seeds:
        draw = tempering(target, chains, kept, warmup, seed, leapfrogs=8)
        point(
            report, title, "parallel tempering", draw, seed, mass=error_of(flat(draw), right),
            log_z_error=(draw.log_z or math.nan) - target.log_z,
        )  # fmt: skip
        particles = settings.size(50_000, 1000)
        draw = sample(
            target.term(torch.float32), particles, sampler=SMC(), init=target.extent(torch.float32), seed=seed
        )
        point(
            report, title, "SMC from the reference", draw, seed, mass=error_of(flat(draw), right),
            log_z_error=(draw.log_z or math.nan) - target.log_z,
        )  # fmt: skip
    judge_wells(report, target)
    report.notes.append(
        f"wells: the right well of a copy has mass {right:.4f}, log Z = {target.log_z:.4f}, by quadrature; the "
        f"reference is N(0, 4 I); HMC with 8 leapfrogs in {chains} chains of {kept} draws after {warmup} of warm-up: "
        "replicas forget where they started only after several hundred transitions."
    )


def judge_wells(report: Report, target: Density) -> None:
    """Rows for the points that were found."""
    title = TITLES[target.name]
    for method, points in report.curves[title].items():
        what = f"{method}: largest error of a well's mass"
        if method == "parallel tempering":
            report.check(title, what, worst(points, "mass"), "≤", 0.02, costs(points))
            report.check(
                title, f"{method}: |log Z error|", worst(points, "log_z_error"), "≤", 0.1, error_bar(points)
            )  # fmt: skip
        else:
            report.tell(title, what, worst(points, "mass"), costs(points))
            report.tell(title, f"{method}: |log Z error|", worst(points, "log_z_error"), error_bar(points))


def error_of(x: Tensor, right: float) -> float:
    """The largest error of the masses of right wells."""
    return float((right_masses(x) - right).abs().max())


# ------------------------------------------------------------------------- funnel


def funnel(report: Report, settings: Settings) -> None:
    """The standard deviation of the neck, 3, and what NUTS reports where it fails."""
    target, uncentred = density("funnel"), density("funnel_noncentred")
    chains, length = settings.size(64, 16), settings.size(1200, 60)
    warmup = settings.size(400, 60)
    centred: dict[str, Kernel] = {
        "NUTS": NUTS(),
        "parallel tempering of HMC": ParallelTempering(HMC(num_leapfrog=5), reference=target.extent(torch.float32)),
    }
    kept: dict[str, Tensor] = {"exact": draws(target, 4000, torch.Generator().manual_seed(1))}
    for seed in settings.seeds:
        for method, kernel in centred.items():
            alone = "NUTS" in method
            sampler = MCMC(kernel, warmup=warmup, draws=length // 2 if alone else length)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw = sample(
                    target.term(torch.float32), chains=chains // 4 if alone else chains, sampler=sampler, seed=seed
                )
            codes = [finding["code"] for finding in draw.info.extra.get("warnings", [])]
            _neck(report, f"{method}, centred", draw, seed, codes)
            kept.setdefault(method, flat(draw))
        sampler = MCMC(NUTS(), warmup=warmup, draws=length)
        draw = sample(uncentred.term(torch.float32), chains=chains // 4, sampler=sampler, seed=seed)
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
