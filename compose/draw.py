"""Draws: samples with weights, evidence and diagnostics, which can be plotted, saved and handed on."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.variable import State, first_tensor, map_state

if TYPE_CHECKING:
    from boltzmix.compose.summary import Summary

_FORMAT = 1


@dataclass
class RunInfo:
    """How a draw was made.

    Attributes:
        sampler: the sampler's class.
        reason: why this sampler and path were taken.
        evaluations: rows evaluated divided by n; a call at one (x, σ) is one, with or without a score;
            probes, pilots and warm-up are counted.
        network_rows: network rows divided by n (k conditions are k rows).
        acceptance: mean over levels or draws.
        divergences: proposals that were not finite.
        ess: effective sample size of the weights before the final resampling (particles), or the smallest
            bulk effective sample size over coordinates (chains).
        step_size: the last one in use.
        seconds: wall-clock time.
        seed: what ``seed=`` was given, None for a generator's own state.
        levels: one record per level, or nothing for chains.
        path: ``"noise"``, ``"geometric"``, ``"exact-start"`` or "".
        extra: what only one sampler reports.
    """

    sampler: str
    reason: str = ""
    evaluations: float = 0.0
    network_rows: float = 0.0
    acceptance: float = math.nan
    divergences: int = 0
    ess: float = math.nan
    step_size: float = math.nan
    seconds: float = 0.0
    seed: int | None = None
    levels: list[dict[str, Any]] = field(default_factory=list)
    path: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Draw:
    """Samples of a formula.

    Attributes:
        x: ``(n, *event)``, ``(chains, draws, *event)`` from MCMC, or a dictionary of these.
        log_weights: ``(n,)``; zeros after the default final resampling.
        log_z: log of the integral of the formula as written, None where a member is neither normalised
            nor calibrated.
        log_z_se: its standard error; it cannot see modes that no particle visited.
        info: diagnostics.
        frames: states along the way when ``record=True`` was asked of the sampler.
        chains: whether x has a chain dimension.
        stats: of chains, per draw ``(chains, draws)``: ``lp``, ``acceptance_rate``, ``diverging`` and, where the
            kernel has them, ``energy`` and ``n_steps``; of SuperDiff ``log_q``, ``(n, members)``.
    """

    x: State
    log_weights: Tensor
    log_z: float | None
    log_z_se: float | None
    info: RunInfo
    frames: list[State] = field(default_factory=list)
    chains: bool = False
    stats: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of draws."""
        return first_tensor(self.x).shape[0]

    def __repr__(self) -> str:
        """What was drawn and how, in one line; the numbers are in :meth:`summary`."""
        shapes = ", ".join(f"{k or 'x'} {tuple(v.shape)}" for k, v in _named(self.x).items())
        z = "" if self.log_z is None else f", log Z {self.log_z:.4g}"
        kernel = f"({self.info.extra['kernel']})" if "kernel" in self.info.extra else ""
        return f"<Draw by {self.info.sampler}{kernel}: {shapes}{z}; summary() has the numbers>"

    def summary(self) -> "Summary":
        """What to print of a draw: a table of chains, or a paragraph on particles; it also holds the numbers.

        ``print(draw.summary())``; ``draw.summary()["mu", "mean"]`` is a number. See
        :class:`~boltzmix.compose.summary.Summary`.
        """
        from boltzmix.compose.summary import summarise

        return summarise(self)

    # --------------------------------------------------------------- pictures

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, kind: str | Sequence[str] | None = None, **options: Any
    ) -> Any:
        """A figure of the draws, saved when ``path`` is given.

        Args:
            path: where to save it; the suffix says the format.
            kind: ``"states"``, the default of particles, is a scatter in 2-D, a sheet of images, or histograms. Of
                chains there are ``"trace"`` (with a density of every chain), ``"rank"`` (histograms of ranks),
                ``"autocorrelation"``, ``"pair"`` (with divergences marked) and ``"energy"``; several of the first
                three share a figure, and ``("trace", "rank")`` is the default.
            options: those of :func:`~boltzmix.compose.pictures.plot_states`; of chains ``names=`` chooses parameters
                (``"theta"``, or ``["mu", "theta[0]"]``), ``most=`` how many are drawn without it, and ``title=``.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        from boltzmix.compose.chain_pictures import KINDS, plot_chains
        from boltzmix.compose.pictures import plot_states

        if kind == "states" or (kind is None and not self.chains):
            return plot_states(self._flat_states(), path, **options)
        if not self.chains:
            raise ValueError(
                f"kind={kind!r} is a picture of chains ({', '.join(KINDS)}); of particles there are 'states'"
            )
        return plot_chains(self.x, self.stats, path, kind=("trace", "rank") if kind is None else kind, **options)

    def animate(self, path: str | os.PathLike[str], *, seconds: float = 4.0, **options: Any) -> Path:
        """A GIF of the path from the first level to the draws.

        Raises:
            ValueError: the sampler was not asked to record its path.
        """
        from boltzmix.compose.pictures import animate_states

        if not self.frames:
            raise ValueError("nothing was recorded: use a sampler with record=True, e.g. SMC(record=True)")
        return animate_states([*self.frames, self._flat_states()], path, seconds=seconds, **options)

    def _flat_states(self) -> State:
        return map_state(lambda t: t.flatten(0, 1), self.x) if self.chains else self.x

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file; x, weights and, as JSON in its header, the diagnostics."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {"log_weights": self.log_weights}
        tensors.update({f"x/{k}": v for k, v in _named(self.x).items()})
        tensors.update({f"stat/{k}": v for k, v in self.stats.items()})
        for index, frame in enumerate(self.frames):
            tensors.update({f"frame/{index:05d}/{k}": v for k, v in _named(frame).items()})
        header = {
            "format": _FORMAT,
            "log_z": self.log_z,
            "log_z_se": self.log_z_se,
            "chains": self.chains,
            "order": {"x": list(_named(self.x)), "stats": list(self.stats)},  # a file sorts its tensors
            "info": asdict(self.info),
        }
        payload = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"draw": json.dumps(header)})
        return write_atomically(path, payload)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Draw":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a draw, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).exists():
            raise FileNotFoundError(f"no draw at {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = json.loads(metadata["draw"])
            if header["format"] != _FORMAT:
                raise ValueError(f"{path} has draw format {header['format']}, this version reads {_FORMAT}")
            order = header.get("order", {})
            stats = {k.removeprefix("stat/"): v for k, v in tensors.items() if k.startswith("stat/")}
            frames = sorted({key.split("/")[1] for key in tensors if key.startswith("frame/")})
            return Draw(
                x=_unnamed(_ordered({k[2:]: v for k, v in tensors.items() if k.startswith("x/")}, order.get("x"))),
                log_weights=tensors["log_weights"],
                log_z=header["log_z"],
                log_z_se=header["log_z_se"],
                info=RunInfo(**header["info"]),
                frames=[
                    _unnamed(
                        _ordered(
                            {k.split("/", 2)[2]: v for k, v in tensors.items() if k.startswith(f"frame/{f}/")},
                            order.get("x"),
                        )
                    )
                    for f in frames
                ],
                chains=header["chains"],
                stats=_ordered(stats, order.get("stats")),
            )
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a saved draw, or is damaged: {error}") from error

    def to_arviz(self) -> Any:
        """An ArviZ ``InferenceData`` with the groups ``posterior`` and, of chains, ``sample_stats``.

        Variables keep their names, and one without a name is ``x``; dimensions are ``chain``, ``draw``, and
        ``theta_dim_0``, … for those of the event. Particles become one chain (resample weighted draws first).

        Raises:
            MissingExtra: ArviZ is not installed.
            ValueError: the draws still carry weights, or a variable is called ``chain`` or ``draw``.
        """
        try:
            import arviz
        except ImportError as error:
            raise MissingExtra('to_arviz() needs ArviZ: pip install "boltzmix[arviz]"') from error
        if not self.chains and bool((self.log_weights != 0).any()):
            raise ValueError("ArviZ has no weights: draw with resample=True (the default) first")
        named = {(k or "x"): _array(v if self.chains else v[None]) for k, v in _named(self.x).items()}
        if taken := {"chain", "draw"} & set(named):
            raise ValueError(f"a variable is called {taken.pop()!r}, as a dimension of ArviZ is; rename it with on()")
        attributes: dict[str, Any] = {
            "sampler": self.info.sampler,
            "reason": self.info.reason,
            "inference_library": "boltzmix",
        }
        if self.info.seed is not None:
            attributes["seed"] = self.info.seed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="More chains")  # thousands of chains are no mistake here
            return arviz.from_dict(
                posterior=named,
                sample_stats={k: _array(v) for k, v in self.stats.items()} if self.chains and self.stats else None,
                attrs=attributes,
            )


def _array(value: Tensor) -> Any:
    """A numpy array; formats that numpy lacks become float32."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> Path:
    """Write to a temporary name beside ``path``, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _named(x: State) -> dict[str, Tensor]:
    return {"": x} if isinstance(x, Tensor) else dict(x)


def _ordered(values: dict[str, Tensor], names: list[str] | None) -> dict[str, Tensor]:
    """In the order of ``names``, which older files do not have."""
    return values if names is None or set(names) != set(values) else {name: values[name] for name in names}


def _unnamed(values: Mapping[str, Tensor]) -> State:
    if not values:
        raise KeyError("no samples in it")
    return values[""] if list(values) == [""] else dict(values)


def zeros(n: int, like: Tensor) -> Tensor:
    """Log-weights of resampled draws."""
    return torch.zeros(n, dtype=like.dtype, device=like.device)
