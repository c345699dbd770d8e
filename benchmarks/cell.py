"""One method on one target with one seed, judged against the target's truth."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from boltzmix.benchmarks.bias import chain_errors, curve, mode_error, weighted_point
from boltzmix.benchmarks.densities import Density
from boltzmix.benchmarks.methods import MethodRun
from boltzmix.compose.diagnostics import ess, rhat

_LARGEST = 2**24  # draws × coordinates whose effective sizes are computed; of larger runs, evenly spaced coordinates


@dataclass(frozen=True)
class Cell:
    """One method on one target with one seed, judged.

    Attributes:
        target, method, seed: which.
        numbers: figures by name; NaN where one has no meaning.
        gradients: of the curves, ``(P,)``.
        average, largest: b_avg² and b_max² of each chain, ``(chains, P)``.
        errors: of chain means, see :func:`~boltzmix.benchmarks.bias.chain_errors`, ``(chains, 2D)``.
        draws: of all chains together.
        counted: whether gradients were counted from inside the target.
        settings: step size and what else the method says of itself.
        error: what went wrong.
    """

    target: str
    method: str
    seed: int
    numbers: dict[str, float]
    gradients: Tensor
    average: Tensor
    largest: Tensor
    errors: Tensor
    draws: int
    counted: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` is the inverse."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.tolist() if isinstance(v, Tensor) else v for name, v in plain.items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Cell":
        """What :meth:`to_json` gave."""
        found = dict(plain)
        for name in ("gradients", "average", "largest", "errors"):
            found[name] = torch.tensor(found[name], dtype=torch.float64)
        return cls(**found)


def judge(run: MethodRun, density: Density) -> Cell:
    """Curves, effective sizes, errors and costs of a run; of one that went wrong, only the error."""
    if run.error is not None or run.draws is None:
        empty = torch.zeros(0, 0, dtype=torch.float64)
        error = run.error or "ValueError: the method returned no draws and no error"
        return Cell(
            run.target, run.method, run.seed, {}, torch.zeros(0), empty, empty, empty, 0, run.counted, {}, error
        )
    x, weighted = run.draws.double(), run.log_weights is not None
    if weighted:
        assert run.log_weights is not None
        found = weighted_point(x, run.log_weights, run.gradients, density)
    else:
        found = curve(x, run.gradients, density)
    total = float(run.gradients.double().sum())
    numbers = {
        "gradients": total / len(x),
        "tuning_gradients": float(run.tuning_gradients),
        **{f"seconds_{name}": float(run.seconds.get(name, math.nan)) for name in ("compile", "tuning", "sampling")},
        "divergences": float(run.divergences),
        "mode_error": mode_error(x, run.log_weights, density),
        "log_z_error": _difference(run.log_z, density.log_z),
        **(_weighted_sizes(run) if weighted else _sizes(x, density)),
    }
    numbers["ess_per_1000"] = 1000 * numbers["ess"] / total
    numbers["ess_squares_per_1000"] = 1000 * numbers["ess_squares"] / total
    numbers["ess_per_second"] = (
        numbers["ess"] / numbers["seconds_sampling"] if numbers["seconds_sampling"] else math.nan
    )
    return Cell(
        run.target, run.method, run.seed, numbers,
        gradients=_short(found.gradients), average=_short(found.average), largest=_short(found.largest),
        errors=_short(chain_errors(x, run.log_weights, density)),
        draws=x.shape[0] * x.shape[1], counted=run.counted, settings=_plain(run.numbers),
    )  # fmt: skip


def _difference(found: float | None, truth: float | None) -> float:
    return math.nan if found is None or truth is None else float(found) - float(truth)


def _sizes(x: Tensor, density: Density) -> dict[str, float]:
    """Least effective sizes of x and x², and the largest R-hat; for long runs in many dimensions of a part of them."""
    if x.shape[1] < 4:
        return {"ess": math.nan, "ess_squares": math.nan, "rhat": math.nan}
    dim = x.shape[2]
    most = max(1, _LARGEST // (x.shape[0] * x.shape[1]))
    chosen = torch.linspace(0, dim - 1, min(dim, most)).round().long()
    standard = (x[:, :, chosen] - density.mean[chosen]) / density.variance[chosen].sqrt()
    return {
        "ess": float(_least(ess(standard))),
        "ess_squares": float(_least(ess(standard * standard))),
        "rhat": float(rhat(standard).max()),
        "coordinates": float(len(chosen)),
    }


def _least(sizes: Tensor) -> Tensor:
    """The smallest; a coordinate that never moved has none, and that makes it NaN."""
    return torch.where(torch.isnan(sizes).any(), torch.nan, sizes.min())


def _weighted_sizes(run: MethodRun) -> dict[str, float]:
    """The effective size of the weights, by what the sampler says where it has resampled."""
    assert run.log_weights is not None
    weight = run.log_weights.double().flatten().softmax(0)
    size = float(1 / (weight * weight).sum())
    said = run.numbers.get("ess", math.nan)
    return {"ess": min(size, said) if math.isfinite(said) else size, "ess_squares": math.nan, "rhat": math.nan}


def _short(values: Tensor) -> Tensor:
    """Six significant digits: as many as files keep."""
    size = values.abs().clamp(min=1e-300).log10().floor()
    scale = 10.0 ** (5 - size).clamp(max=300)
    rounded = (values * scale).round() / scale
    return torch.where(torch.isfinite(rounded), rounded, values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
