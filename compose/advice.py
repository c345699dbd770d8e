r"""What is wrong with a run of chains, why, and what to do: findings that name cause and remedy.

Why chains disagree is told by :mod:`boltzmix.compose.disagreement`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.coordinates import Coordinates
from boltzmix.compose.diagnostics import convergence, ess, normal_scores, over_columns
from boltzmix.compose.disagreement import MANY, RHAT, RHAT_OF_MANY, cause_of_disagreement, rhat_limit
from boltzmix.compose.variable import State

_BFMI = 0.3
_RUN_AWAY = 1e6  # a coordinate as large as that, on trajectories that do not turn, may have nothing to hold it


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: ``"non-finite"``, ``"stuck"``, ``"constant"``, ``"divergences"``, ``"multimodal"``, ``"short-warmup"``,
            ``"slow-mixing"``, ``"resonance"``, ``"energy"``, ``"tree-depth"``, ``"acceptance"`` or ``"few-draws"``.
        message: what was seen, with its numbers.
        remedy: what to try.
        where: coordinates concerned, the worst first.
    """

    code: str
    message: str
    remedy: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Message and remedy in one line."""
        return f"{self.message}: {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy, "where": list(self.where)}


@dataclass(frozen=True)
class Facts:
    """What is known of a run besides its draws.

    Args:
        kernel: the kernel that ran.
        warmup: transitions of the warm-up.
        transitions: of all chains after the warm-up, thinned ones included.
        divergences: among these.
        acceptance: mean of each chain, ``(chains,)``.
        bfmi: E-BFMI of each chain, for kernels that draw a new momentum for every transition.
        tune: step size and mass in use.
        clamped: which coordinates are held fixed, ``(D,)``.
        separate: chains have conditions, and so targets, of their own: they are not compared.
    """

    kernel: Any = None
    warmup: int = 0
    transitions: int = 0
    divergences: int = 0
    acceptance: Tensor | None = None
    bfmi: Tensor | None = None
    tune: Any = None
    clamped: Tensor | None = None
    separate: bool = False

    @property
    def name(self) -> str:
        """The kernel's class."""
        return type(self.kernel).__name__


@dataclass(frozen=True)
class Report:
    """Convergence of a run, and what is wrong with it.

    Attributes:
        ess: the smallest bulk effective sample size over coordinates that move; NaN where none does, or where one is
            not finite.
        rhat: the largest R-hat over coordinates that move.
        findings: the worst first.
    """

    ess: float
    rhat: float
    findings: list[Finding] = field(default_factory=list)


def report(x: State, stats: Mapping[str, Tensor] | None = None, facts: Facts | None = None) -> Report:
    """Examine finished chains.

    Args:
        x: ``(chains, draws, *event)``, at least four draws, or a dictionary of these.
        stats: as in ``draw.stats``.
        facts: what else is known of the run.

    Example:
        >>> x = torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0))
        >>> report(x).findings
        []
        >>> report(x + torch.tensor([0.0, 0.0, 0.0, 9.0])[:, None, None]).findings[0].code
        'multimodal'
    """
    stats, facts = stats or {}, facts or Facts()
    look = _Look(Coordinates(x), stats, facts)
    found = [*look.not_finite(), *look.stuck(), *look.constant(), *look.divergences()]
    mixing = [] if any(f.code in ("stuck", "non-finite") for f in found) else look.mixing()
    arriving = any(f.code == "short-warmup" for f in mixing)  # then energies fall, and say nothing of the target
    causes = [] if arriving else [*look.resonance(), *look.energy(), *look.tree_depth()]
    if causes or any(
        f.where for f in found
    ):  # chains move slowly because of these: what else helps is beside the point
        cure = "cure what the other warnings name, and run longer if it remains"
        mixing = [replace(f, remedy=cure) if f.code in ("slow-mixing", "few-draws") else f for f in mixing]
    found += [*causes, *mixing, *look.acceptance()]
    moving = look.moving
    whole = bool(moving.any()) and not bool(look.broken.any())
    ess = float(look.bulk[moving].min()) if whole else math.nan
    return Report(ess, float(look.rhat[moving].max()) if whole else math.nan, found)


class _Look:
    def __init__(self, coordinates: Coordinates, stats: Mapping[str, Tensor], facts: Facts) -> None:
        self.at, self.stats, self.facts = coordinates, stats, facts
        self.chains, self.draws = coordinates.tensors[0].shape[:2]
        parts = [convergence(_apart(t)) if facts.separate else convergence(t) for t in coordinates.tensors]
        bulk, tail, r = (torch.cat([p[k].cpu() for p in parts], -1) for k in range(3))
        if facts.separate:  # of every coordinate, the chain that is worst
            bulk, tail = (_filled(v, math.inf).amin(0) for v in (bulk, tail))
            r = _filled(r, -math.inf).amax(0)
            bulk, tail, r = (torch.where(v.isfinite(), v, math.nan) for v in (bulk, tail, r))
        self.bulk, self.tail, self.rhat = bulk, tail, r
        self.broken = torch.zeros(len(self.at), dtype=torch.bool)
        for k in bulk.isnan().nonzero()[:, 0].tolist():
            self.broken[k] = not bool(torch.isfinite(self.at[k]).all())
        self.moving = ~bulk.isnan()

    def worst(self, values: Tensor, most: int = 3) -> tuple[str, ...]:
        """Names of the coordinates with the largest values."""
        values = _filled(values, -math.inf)
        order = values.argsort(descending=True)[:most].tolist()
        return tuple(self.at.names[k] for k in order if values[k] > -math.inf)

    def not_finite(self) -> list[Finding]:
        count = int(self.broken.sum())
        if not count:
            return []
        where = self.worst(torch.where(self.broken, 0.0, -math.inf))
        return [
            Finding(
                "non-finite",
                f"{_are(count, 'coordinate')} NaN or infinite in some draws ({_list(where)})",
                "the target gives densities to such states, or a transformation overflows: restrict its support, "
                "or draw in float64",
                where,
            )
        ]

    def stuck(self) -> list[Finding]:
        still = torch.ones(self.chains, dtype=torch.bool, device=self.at.tensors[0].device)
        for t in self.at.tensors:
            for start in range(1, self.draws, 16):  # a chain that moves is known after a few draws
                rows = still.nonzero()[:, 0]
                if not len(rows):
                    return []
                same = (t[rows, start : start + 16] == t[rows, :1]).flatten(1).all(1)
                still[rows] = same
        count = int(still.sum())
        if not count:
            return []
        rate = self.facts.acceptance
        said = "" if rate is None else f" (mean acceptance {float(rate.mean()):.2g})"
        remedy = (
            "use a smaller step size, or adapt=True with step_size=None; where only some chains are stuck, give "
            "them better starts with init="
        )
        if getattr(self.facts.kernel, "moves", "real") == "discrete":
            remedy = f"their neighbours are too improbable: {self.better_kernel()}, or use ParallelTempering()"
        return [
            Finding(
                "stuck",
                f"{count} of {self.chains} chains never moved{said}, so their draws are one point",
                remedy,
            )
        ]

    def constant(self) -> list[Finding]:
        still = ~self.moving & ~self.broken
        if self.facts.clamped is not None and len(self.facts.clamped) == len(still):
            still &= ~self.facts.clamped.cpu()
        real = [torch.full((t.shape[2],), t.is_floating_point()) for t in self.at.tensors]
        still &= torch.cat(real)
        if not bool(still.any()) or not bool(self.moving.any()):
            return []
        where = self.worst(torch.where(still, 0.0, -math.inf))
        return [
            Finding(
                "constant",
                f"{_are(int(still.sum()), 'coordinate')} the same in every draw ({_list(where)})",
                "its scale is below what its numbers resolve: shift and rescale it with affine(), or draw in float64",
                where,
            )
        ]

    def divergences(self) -> list[Finding]:
        count, total = self.facts.divergences, self.facts.transitions
        if count < max(1.0, 1e-4 * total):
            return []
        where: tuple[str, ...] = ()
        what = "the target is undefined, or too curved for the step size, where the chains go"
        remedy = f"{self.smaller_steps()}, or reparametrise the target there"
        marked = self.stats.get("diverging")
        if marked is not None and int(marked.sum()) >= 4:
            weights = marked.double() / marked.sum()
            signed, folded = self.against(weights)
            size = math.sqrt(int(marked.sum()))
            k = int(torch.nan_to_num(signed).abs().argmax())
            j = int(torch.nan_to_num(folded).abs().argmax())
            if abs(float(signed[k])) > max(0.5, 3.3 / size):
                side = "small" if signed[k] < 0 else "large"
                where = (self.at.names[k],)
                what = f"they gather where {where[0]} is {side}: a funnel, or an edge of the support"
                remedy = (
                    f"if {where[0]} is a scale (or its log), write what it scales as location + scale * standard "
                    f"normal (non-centred); else {remedy}"
                )
            elif float(folded[j]) > max(0.5, 3.3 / size):
                where = (self.at.names[j],)
                what = f"they gather far out in {where[0]}: an edge of the support, or tails too steep for the step"
        return [
            Finding(
                "divergences",
                f"{count} of {total} transitions diverged (their proposals were not finite and were rejected, or "
                f"their trajectories became unstable); {what}",
                remedy,
                where,
            )
        ]

    def smaller_steps(self) -> str:
        """How to ask this kernel for smaller steps."""
        kernel = self.facts.kernel
        named = [f.name for f in fields(kernel)] if is_dataclass(kernel) else []
        if "target_acceptance" in named:
            aim = getattr(kernel, "target_acceptance", 0.8)
            return f"take smaller steps with {self.facts.name}(target_acceptance={_nearer(aim)})"
        return "use a smaller step size"

    def against(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Σ weights × normal scores of each coordinate, and of its distance from the median."""

        def fn(c: Tensor) -> Tensor:
            z = normal_scores(c)
            w = weights.to(c)
            return torch.stack([(z * w).sum((1, 2)), (normal_scores(z.abs()) * w).sum((1, 2))])

        both = torch.cat([over_columns(t, fn, rows=2).cpu() for t in self.at.tensors], 1)
        return both[0], both[1]

    # ------------------------------------------------------------------ mixing

    def mixing(self) -> list[Finding]:
        if not bool(self.moving.any()):
            return []
        worst = float(self.rhat[self.moving].max())
        chains = 1 if self.facts.separate else self.chains
        tests = len(self.at) * (self.chains if self.facts.separate else 1)
        if worst > max(RHAT, rhat_limit(chains, self.draws, tests)):
            found = self.disagreement(worst)
            short = found.code == "slow-mixing" and chains >= MANY and worst < RHAT_OF_MANY
            return self.few_draws() if short else [found]
        return self.few_draws()

    def few_draws(self) -> list[Finding]:
        chains = 1 if self.facts.separate else self.chains
        needed = min(100.0 * chains, 400.0)
        if chains * self.draws < 4 * needed:
            return []  # so few were asked for
        smaller = torch.minimum(self.bulk, self.tail)
        if not float(smaller[self.moving].min()) < needed:
            return []
        k = int(_filled(smaller, math.inf).argmin())
        name, part = self.at.names[k], "bulk" if self.bulk[k] <= self.tail[k] else "tail"
        means = "means and their errors" if part == "bulk" else "the quoted 5% and 95% quantiles"
        return [
            Finding(
                "few-draws",
                f"the {part} effective sample size of {name} is {float(smaller[k]):.0f}, below {needed:.0f}, so "
                f"{means} are uncertain",
                f"keep more draws (about {self.longer(float(smaller[k]), needed)}), or {self.better_kernel()}",
                self.worst(-smaller),
            )
        ]

    def longer(self, size: float, needed: float) -> str:
        """How many draws it would take."""
        wanted = self.draws * max(2.0, needed / max(size, 1.0))
        unit = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
        return f"draws={math.ceil(wanted / unit) * unit}"

    def longer_warmup(self) -> str:
        """A warm-up to try."""
        return f"e.g. warmup={max(1000, 4 * self.facts.warmup)}"

    def better_kernel(self) -> str:
        """What helps chains that move slowly."""
        kernel, rate = self.facts.kernel, self.facts.acceptance
        if getattr(kernel, "moves", "real") == "discrete":
            return "update several coordinates jointly with Gibbs(blocks=…)"
        if getattr(kernel, "moves", "real") == "both":
            return "give variables that depend on each other one kernel, or take another parametrisation"
        if getattr(kernel, "step_size", None) is not None:
            seen = "" if rate is None else f" (acceptance is {float(rate.mean()):.2f} now)"
            return f"have the step size adapted with step_size=None{seen}, or use NUTS()"
        if self.facts.name == "NUTS":
            return 'reparametrise, or try a dense mass: adapt=Windows(mass="dense")'
        return 'use NUTS(), a dense mass with adapt=Windows(mass="dense"), or another parametrisation'

    def between_modes(self) -> str:
        """What crosses between modes, of this kernel's variables."""
        if self.facts.name == "ParallelTempering":
            return "use more temperatures, hotter ones, or a reference= that covers every mode"
        if getattr(self.facts.kernel, "moves", "real") == "real":
            return "use SMC() or ParallelTempering(), which move between modes"
        return "use ParallelTempering(), which moves between modes"

    def disagreement(self, worst: float) -> Finding:
        """R-hat is too large: why."""
        k = int(_filled(self.rhat, -math.inf).argmax())
        where = self.worst(torch.where(self.rhat > RHAT, self.rhat, -math.inf))
        name, seen = self.at.names[k], f"R-hat is {worst:.3f} for {self.at.names[k]}"
        c = self.at[k].double()
        cause, groups = "slow-mixing", ""
        if self.facts.separate:
            seen += " within a chain"
        else:
            cause, groups = cause_of_disagreement(c)
        if cause == "multimodal":
            return Finding(
                cause,
                f"{seen}: every chain is stationary, but in a place of its own ({groups}), so modes are separate and "
                "their weights unknown",
                f"{self.between_modes()}; more draws will not help",
                where,
            )
        if cause == "short-warmup":
            return Finding(
                cause,
                f"{seen}: chains had not arrived when the warm-up ended; {groups}",
                f"use a longer warm-up, {self.longer_warmup()}, or better starts with init=",
                where,
            )
        size = min(float(ess(c, "bulk")), float(ess(c, "folded")))  # antithetic chains know means, not scales
        return Finding(
            cause,
            f"{seen}, so chains disagree: they move slowly, {self.chains * self.draws} draws of {name} are worth "
            f"{size:.0f}",
            f"run longer (about {self.longer(size, 100.0 * self.chains)}), or {self.better_kernel()}; where a trace "
            f"plot shows jumps between levels, {self.between_modes()}",
            where,
        )

    def resonance(self) -> list[Finding]:
        kernel = self.facts.kernel
        leapfrogs = getattr(kernel, "num_leapfrog", None)
        rate = self.facts.acceptance
        if kernel is None or not isinstance(leapfrogs, int) or leapfrogs < 2:
            return []
        if self.facts.bfmi is None or self.draws < 20 or (rate is not None and float(rate.mean()) < 0.5):
            return []
        both = torch.cat([over_columns(t, _lag_one, rows=3).cpu() for t in self.at.tensors], 1)
        first, squares, deviation = torch.nan_to_num(both)
        jittered = bool(getattr(kernel, "jitter", False))
        turns = (first < -0.5) & (squares > (0.5 if jittered else 0.25))
        angle = self.angles(deviation, leapfrogs)
        returns = (angle > 2.5) & (first > 0.5) & (not jittered)
        if not bool((turns | returns).any()):
            return []
        where = self.worst(torch.where(turns | returns, first.abs(), -math.inf))
        k = self.at.names.index(where[0])
        seen = "overshoots to the other side" if first[k] < 0 else "comes back to where it began"
        other = f"num_leapfrog={max(1, leapfrogs // 2)}" if jittered else "jitter=True"
        return [
            Finding(
                "resonance",
                f"trajectories of {leapfrogs} leapfrogs{'' if jittered else ' without jitter'} resonate with "
                f"{where[0]}: a transition {seen} (autocorrelation {float(first[k]):.2f} at lag 1, "
                f"{float(squares[k]):.2f} of the squares)",
                f"use {self.facts.name}({other}), or NUTS()",
                where,
            )
        ]

    def angles(self, deviation: Tensor, leapfrogs: int) -> Tensor:
        """Length of a trajectory over the scale of each coordinate; a period is 2π. Zero where it is not known."""
        tune = self.facts.tune
        mass = getattr(tune, "mass", None)
        scale = getattr(mass, "variance", None) if mass is not None else torch.ones(1)
        if tune is None or scale is None or scale.numel() not in (1, len(deviation)):
            return torch.zeros_like(deviation)
        return float(tune.step_size.double().mean()) * leapfrogs * scale.double().cpu().sqrt() / deviation

    # --------------------------------------------------------- kernels' own marks

    def energy(self) -> list[Finding]:
        values = self.facts.bfmi
        if values is None or self.facts.transitions < 100 * self.chains:
            return []
        low = int((values < _BFMI).sum())
        if low < max(1, 0.05 * self.chains):
            return []
        least = float(_filled(values, math.inf).min())
        seen = f"E-BFMI is below {_BFMI} in {low} of {self.chains} chains (smallest {least:.2f}), so they move slowly "
        seen += "between energies and have not seen the tails in proportion"
        where, remedy = (), "reparametrise: non-centred where a scale multiplies other variables, lighter tails else"
        energy = self.stats.get("lp", self.stats.get("energy"))
        if energy is not None and bool(torch.isfinite(energy).all()) and energy.shape == (self.chains, self.draws):
            signed, folded = self.against(normal_scores(energy.double()[None])[0] / energy.numel())
            k, j = (int(torch.nan_to_num(v).abs().argmax()) for v in (signed, folded))
            if abs(float(signed[k])) > 0.5:
                where = (self.at.names[k],)
                seen += f"; energy goes with {where[0]} (correlation {abs(float(signed[k])):.2f}), as in a funnel"
                remedy = f"write what {where[0]} scales as location + scale * standard normal (non-centred)"
            elif abs(float(folded[j])) > 0.5:
                where = (self.at.names[j],)
                seen += f"; energy goes with the distance of {where[0]} from its middle: heavy tails"
                remedy = f"transform {where[0]} to lighter tails (a Student t is a normal over a random scale)"
        return [Finding("energy", seen, remedy, where)]

    def tree_depth(self) -> list[Finding]:
        depth, steps = getattr(self.facts.kernel, "max_depth", None), self.stats.get("n_steps")
        if not isinstance(depth, int) or steps is None:
            return []
        share = float((steps >= 2**depth - 1).double().mean())
        if share <= 0.01:
            return []
        seen = f"{share:.0%} of trajectories ended at max_depth={depth}, {2**depth - 1} leapfrogs, before they turned"
        reach = torch.cat([t.double().abs().amax((0, 1)).cpu() for t in self.at.tensors])
        k = int(torch.nan_to_num(reach).argmax())
        if float(reach[k]) > _RUN_AWAY:
            name = self.at.names[k]
            seen += f", and {name} went as far as {float(reach[k]):.1g}"
            remedy = (
                f"where nothing holds {name}, the density has no finite integral: give it a prior; where such values "
            )
            return [Finding("tree-depth", seen, remedy + "are right, take other units", (name,))]
        return [
            Finding(
                "tree-depth",
                seen,
                "scales differ widely or coordinates are correlated: a longer warm-up, or adapt=Windows(mass="
                f'"dense"); or allow longer ones with {self.facts.name}(max_depth={depth + 2})',
            )
        ]

    def acceptance(self) -> list[Finding]:
        kernel, rate = self.facts.kernel, self.facts.acceptance
        steps = getattr(kernel, "step_size", None) is not None or getattr(kernel, "adapts", False)
        aim = getattr(kernel, "target_acceptance", None) if steps and not hasattr(kernel, "kernels") else None
        moved = getattr(kernel, "kernel", kernel)  # what parallel tempering moves its replicas with
        if getattr(moved, "step_size", None) is None and not getattr(moved, "adapts", True):
            return []  # there is no step size to blame
        if rate is None or not isinstance(aim, (int, float)) or bool((rate == 0).any()):
            return []  # stuck chains are a finding of their own
        adjusted = getattr(kernel, "adjusted", True)
        least = 0.6 * aim if adjusted else 1 - 5 * (1 - aim)
        mean, low = float(rate.mean()), rate < 0.5 * least
        if mean >= least and int(low.sum()) < max(1, 0.05 * self.chains):
            return []
        given = getattr(kernel, "step_size", None) is not None
        cure = "let it adapt with step_size=None" if given else f"use a longer warm-up, {self.longer_warmup()}"
        if mean < least:
            cost = "most proposals are wasted" if adjusted else "the bias of its steps is large"
            seen = f"acceptance is {mean:.2g} where {self.facts.name} aims at {aim:g}, so {cost}"
            return [Finding("acceptance", seen, f"use a smaller step size, or {cure}")]
        seen = f"{int(low.sum())} of {self.chains} chains accept below {0.5 * least:.2g}, and {mean:.2g} is the mean"
        cure = "they are in a narrow place or in the tails: use a longer warm-up, better starts with init=, or NUTS()"
        return [Finding("acceptance", seen, cure)]


# -------------------------------------------------------------------- formulas


def _lag_one(c: Tensor) -> Tensor:
    """Of columns ``(K, chains, draws)``: autocorrelation at lag 1, that of the squares, and the standard deviation."""
    centred = c - c.mean((1, 2), keepdim=True)
    squares = centred.square()
    found = []
    for v in (centred, squares - squares.mean((1, 2), keepdim=True)):
        found.append((v[..., 1:] * v[..., :-1]).mean((1, 2)) / v.square().mean((1, 2)))
    return torch.stack([*found, squares.mean((1, 2)).sqrt()])


def _filled(values: Tensor, value: float) -> Tensor:
    """NaN replaced."""
    return torch.where(values.isnan(), value, values)


def _apart(t: Tensor) -> Tensor:
    """Chains ``(chains, draws, K)`` as coordinates of one chain, ``(1, draws, chains, K)``."""
    return t.movedim(0, 1)[None]


def _nearer(aim: float) -> float:
    """An aim closer to one."""
    return 0.95 if aim < 0.9 else 0.99


def _are(count: int, what: str) -> str:
    return f"{count} {what}{' is' if count == 1 else 's are'}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
