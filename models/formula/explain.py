"""What a run is going to do and to cost, before it runs."""

import math
import statistics
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from boltzmix.compose.errors import SamplingWarning
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.sample import as_generator, sample
from boltzmix.compose.samplers import SMC, Annealed, Exact, Reverse
from boltzmix.compose.samplers.anneal import Plan
from boltzmix.compose.samplers.base import Request, Sampler, frozen
from boltzmix.compose.samplers.path import NoisePath
from boltzmix.compose.samplers.start import choose_path
from boltzmix.compose.samplers.sums import split_sum
from boltzmix.compose.term import Term
from boltzmix.models.formula.build import Formula
from boltzmix.models.formula.describe import normal_form, path_reason, shape
from boltzmix.models.formula.samplers import short

PILOT = 128
"""Draws of the short run that finds how many levels adaptive samplers take; other samplers make do with 32."""

_AFFORDABLE, _GUESS = 20.0, 300  # seconds of a short run, and the evaluations that it may take
_LONG_ENOUGH = 0.5  # seconds of timing
_MOST_TIMED = 1024  # draws


@dataclass
class Explanation:
    """What ``--explain`` says.

    Attributes:
        rows: (heading, text) for people.
        data: the same as JSON.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Headings to the left, text to the right."""
        width = max(len(heading) for heading, _ in self.rows)
        return "\n".join(f"{heading:{width}}  {text}" for heading, text in self.rows)


def briefly(formula: Formula, sampler: Sampler, reason: str, n: int) -> str:
    """Two lines before a run; nothing is evaluated for them."""
    term = formula.term
    counted = evaluations(sampler, term, n)
    each = f", {counted:g} evaluations each" if counted is not None else ""
    rows = f" of {term._rows()} network rows" if counted is not None and term._rows() > 1 else ""
    return f"{normal_form(formula)}, a path that is {term.path}\n{n} draws by {short(sampler)}, {reason}{each}{rows}"


def explain(formula: Formula, sampler: Sampler, reason: str, n: int, seed: int = 0, **options: Any) -> Explanation:
    """Normal form, path, sampler, plan and cost.

    The network is timed on a few batches, and a sampler whose number of evaluations is not known beforehand makes a
    short run of few draws, if that takes seconds; the text says so. Nothing of this enters the run itself.

    Args:
        options: ``device`` and ``dtype``, as :func:`boltzmix.sample` takes them.
    """
    term = formula.term
    said = Explanation()
    rows, data = said.rows, said.data

    def add(heading: str, text: str, **values: Any) -> None:
        rows.append((heading, text))
        data.update(values)

    add("formula", " ".join(formula.text.split()), formula=formula.text)
    add("normal form", normal_form(formula), normal_form=normal_form(formula))
    add("one draw", shape(term), shape=shape(term))
    why = path_reason(formula)
    add("path", f"{term.path}: {why}", path=term.path, path_reason=why)
    add("energies", _energies(term), has_energy=term.has_energy, calibrated=term.calibrated)
    add("sampler", f"{short(sampler)}: {reason}", sampler=short(sampler), reason=reason)
    part = split_sum(term) if isinstance(sampler, SMC) else [(0.0, term)]
    if isinstance(term, Mixture) and not term.has_energy:
        part = [(0.0, member) for member in term._terms()]
    if len(part) > 1:
        add("members", f"{len(part)} members of a sum, each drawn by itself; the plan is that of the first")
    first = Formula(formula.text, part[0][1], formula.tree, formula.labels, formula.models)
    each = _share(sampler, n, len(part)) if isinstance(sampler, SMC) else n / len(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # the run itself will say it
        for line in _plan(first.term, sampler, max(1, round(each)), seed, options):
            add("plan" if rows[-1][0] not in ("plan", "") else "", line)
        seconds, timed, compiled = _timing(first.term, n, options)
        counted, how = _count(first.term, sampler, max(1, round(each)), seconds / timed, options)
    network, calls = first.term._rows(), forwards(first.term)
    called = f"{calls} forward{'s' * (calls != 1)} of the networks"
    total = None if counted is None else counted * each * len(part) / n
    if total is not None:
        add(
            "cost",
            f"{_words(total)} evaluations for each of {n} draws ({how}), {_words(total * network)} network rows each; "
            f"one evaluation of all draws is {called}",
            evaluations_per_draw=total,
            network_rows_per_draw=total * network,
            forwards_per_evaluation=calls,
        )
        estimate = total * n / timed * seconds
        add(
            "time",
            f"about {_duration(estimate)}: one evaluation of {timed} draws took {_duration(seconds)} just "
            f"now{compiled}; the sampler's own work comes on top",
            seconds=estimate,
        )
    else:
        add(
            "cost",
            f"not known beforehand ({how}); one evaluation of {timed} draws is {called} and took {_duration(seconds)} "
            "just now",
            forwards_per_evaluation=calls,
        )
    data.update(n=n, seed=seed, seconds_per_evaluation=seconds * n / timed)
    return said


def _energies(term: Term) -> str:
    if not term.has_energy:
        return "no, scores only: no weights and no log Z from energies"
    return "yes, and their constants mean something: log Z is reported" if term.calibrated else (
        "yes, up to constants: log Z is not reported"
    )  # fmt: skip


def forwards(term: Term) -> int:
    """Forwards of networks in one evaluation: one for each network, whatever number of conditions it serves."""
    from boltzmix.compose.product import open_leaves

    groups = {leaf._group() or leaf.key() for leaf in open_leaves([term]) if leaf._rows()}
    cores = {id(getattr(leaf, "core", getattr(leaf, "net", leaf))) for leaf in open_leaves([term]) if leaf._rows()}
    return max(len(groups), len(cores))


# ------------------------------------------------------------------------- the plan


def _plan(term: Term, sampler: Sampler, n: int, seed: int, options: dict[str, Any]) -> list[str]:
    """How the sampler goes about it."""
    if isinstance(sampler, Reverse):
        low, high = term.sigma_range
        if sampler.sigmas is not None:
            return [f"the levels that were given, by {sampler.solver}"]
        last = max(low, 2e-3 * min(1.0, high))
        return [f"{sampler.steps} levels from sigma = {high:g} down to {last:g}, by {sampler.solver}"]
    if isinstance(sampler, Exact):
        return ["independent draws, one pass each"]
    if not isinstance(sampler, SMC | Annealed):
        return []
    plan = planned(sampler, term)
    generator, _ = as_generator(seed, options.get("device"))
    rows = any(getattr(module, "per_row", False) is True for module in term.modules())
    request = Request(term, n if rows else min(n, 32), generator, seed, "", options.get("dtype"), options.get("device"))
    try:
        with frozen(term), torch.no_grad():
            view = request.view()
            wanted = sampler.path if isinstance(sampler, SMC) else "auto"
            path, _, why = choose_path(view, request, wanted, isinstance(sampler, SMC))
    except (ValueError, TypeError) as error:
        return [f"it will not start: {error}"]
    lines = [why]
    if isinstance(plan.levels, str):
        lines.append(f"levels so that the effective size falls by {1 - plan.cess:.2g} from one to the next")
    elif isinstance(path, NoisePath):
        levels = [path.level(u) for u in plan.levels]
        shown = [f"{s:.3g}" for s in levels[:-1] if s is not None]
        some = shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]]
        lines.append(f"{len(plan.levels)} levels: sigma = {', '.join(some)}{', ' if some else ''}then the data end")
    else:
        lines.append(f"{len(plan.levels)} levels, evenly from the start to the target")
    count = per_step(plan, term)
    lines.append(
        f"{plan.moves} step{'s' * (plan.moves != 1)} of {short(plan.kernel)} at each level, {count} "
        f"evaluation{'s' * (count != 1)} a step; step size "
        + ("adapted" if plan.kernel.step_size is None else f"{plan.kernel.step_size:g} at the last level")
    )
    return lines


def planned(sampler: SMC | Annealed, term: Term) -> Plan:
    """The sampler's own plan."""
    return sampler._plan() if isinstance(sampler, SMC) else sampler._plan(term.has_energy)


def per_step(plan: Plan, term: Term) -> int:
    """Evaluations of a kernel's step; tests without energies integrate the score between them."""
    each, nodes = plan.kernel.evaluations_per_step, getattr(plan.kernel, "nodes", 0)
    return each if term.has_energy else each * (1 + nodes)


def evaluations(sampler: Sampler, term: Term, n: int) -> float | None:
    """Evaluations for each draw, where they are known beforehand, without the search for a start."""
    if isinstance(sampler, Reverse):
        if getattr(sampler, "corrector", None) is not None:
            return None
        count = len(sampler.sigmas) if isinstance(sampler.sigmas, tuple) else sampler.steps
        if sampler.sigmas is not None and not isinstance(sampler.sigmas, tuple):
            return None
        return 2 * count - (term.sigma_range[0] > 0) if sampler.solver == "heun" else count
    if isinstance(sampler, SMC | Annealed):
        plan = planned(sampler, term)
        if isinstance(plan.levels, str):
            return None
        final = sampler.final_moves if isinstance(sampler, SMC) else 0
        levels = len(plan.levels)
        return 1 + levels + (levels * plan.moves + final) * per_step(plan, term)
    return None


def _share(sampler: Sampler, n: int, members: int) -> float:
    """Draws that a member of a sum is given."""
    return max(n / members, min(n, 256)) if members > 1 else n


def _count(term: Term, sampler: Sampler, n: int, seconds: float, options: dict[str, Any]) -> tuple[float | None, str]:
    """Evaluations for each draw and how they were found."""
    counted = evaluations(sampler, term, n)
    if counted is not None:
        return counted, "counted, without the search for a start"
    if isinstance(sampler, Exact):
        return None, "draws are exact, without evaluations"
    size = getattr(sampler, "population", None) or min(n, PILOT if isinstance(sampler, SMC) else 32)
    rows = any(getattr(module, "per_row", False) is True for module in term.modules())
    if rows or seconds * size * _GUESS > _AFFORDABLE:
        return None, "the number of levels is found on the way" if isinstance(sampler, SMC) else "not counted"
    quiet: Any = {"record": False} if hasattr(sampler, "record") else {}
    try:
        draw = sample(term, size, sampler=replace(sampler, **quiet), seed=0, progress=False, **options)
    except (ValueError, TypeError) as error:
        return None, f"a short run of {size} draws failed: {error}"
    levels = f", {len(draw.info.levels)} levels" if draw.info.levels else ""
    return draw.info.evaluations, f"in a short run of {size} draws{levels}"


def _timing(term: Term, n: int, options: dict[str, Any]) -> tuple[float, int, str]:
    """Seconds of one evaluation, the number of draws that were evaluated, and what to say of it."""
    rows = any(getattr(module, "per_row", False) is True for module in term.modules())
    size = n if rows else min(n, _MOST_TIMED)
    generator, _ = as_generator(0, options.get("device"))
    request = Request(term, size, generator, 0, "", options.get("dtype"), options.get("device"))
    with frozen(term), torch.no_grad():
        view = request.view().as_product()
        low, high = term.sigma_range
        level = None if term.path == "static" else math.sqrt(max(low, 1e-3) * min(high, 1e3))
        x = torch.randn(size, view.dim, generator=generator, dtype=view.dtype, device=view.device)
        target: Any = view.at(level)
        evaluate = target.energy_and_score if view.has_energy else target.score

        def once() -> float:
            clock = time.perf_counter()
            evaluate(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - clock

        once()  # the first one allocates
        times = [once()]
        while len(times) < 9 and sum(times) < _LONG_ENOUGH:
            times.append(once())
    many = len(times)
    return statistics.median(times), size, f" (median of {many}, not compiled)" if many > 1 else " (not compiled)"


def _words(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """Two digits with a unit."""
    if seconds < 1.0:
        return f"{1000 * seconds:.0f} ms" if seconds > 0.01 else f"{1000 * seconds:.2g} ms"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds > 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
