r"""Schedulers of the diffusers library: the schedule that a network was trained with, and the sampler that it runs.

:func:`read_schedule` takes the first of the two, :func:`reverse_like` the second, as a ``Reverse`` in the σ coordinate.
A scheduler's variance-preserving state is :math:`x_t = \alpha_t x_\sigma`, that of a flow :math:`(1 - t) x_\sigma` with
σ = t / (1 − t), that of Euler's and its kin x_σ itself; in the common coordinate their steps are the same few lines.

============================  ==================================================================================
scheduler                     is in the σ coordinate
============================  ==================================================================================
DDIM                          ``"ddim"`` with its η
DDPM                          ``"ddpm"``; the large variance is :math:`(1 - \bar\alpha_t/\bar\alpha_s)/\bar\alpha_s`
EulerDiscrete, EDMEuler       ``"euler"``
EulerAncestralDiscrete        ``"euler-ancestral"``
HeunDiscrete                  ``"heun"``
DPMSolverMultistep            ``"dpmpp"`` of order 1 or 2; its SDE version is η = 1
FlowMatchEulerDiscrete        ``"euler"``, which starts at σ = ∞ where t = 1
============================  ==================================================================================
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.samplers.ladder import Ladder
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.models.schedules import EDM, VP, FlowMatching, Schedule

# Schedulers of one family store the same attributes.
DISCRETE = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)
PRECONDITIONED = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def read_schedule(schedule: object, prediction: str | None = None) -> tuple[Schedule, str]:
    """The noise schedule and the prediction type that a scheduler stands for.

    Raises:
        TypeError: an unknown scheduler; the message lists the known.
        ValueError: no schedule, or a :class:`Schedule` without ``prediction=``.
    """
    if schedule is None:
        raise ValueError(
            "a diffusion network needs schedule=, the scheduler that it was trained with: "
            'term(net, schedule=DDPMScheduler.from_pretrained(…, subfolder="scheduler"))'
        )
    if isinstance(schedule, Schedule):
        if prediction is None:
            raise ValueError(f"{type(schedule).__name__} does not say what the network predicts: pass prediction=")
        return schedule, prediction
    name = known(schedule, (*DISCRETE, *PRECONDITIONED, *FLOW))
    if name is None:
        raise TypeError(
            f"unknown scheduler {type(schedule).__name__}; known are {[*DISCRETE, *PRECONDITIONED, *FLOW]}, or a "
            "Schedule of boltzmix.models.schedules with prediction="
        )
    config: Any = getattr(schedule, "config")  # noqa: B009
    own = config.get("prediction_type", "flow")
    if name in PRECONDITIONED:
        # Their "epsilon" is the raw network of the preconditioning.
        own = "edm" if own == "epsilon" else own
        return EDM(config.sigma_min, config.sigma_max, config.sigma_data), prediction or own
    steps = config.num_train_timesteps
    if name in FLOW or config.get("use_flow_sigmas") or own == "flow_prediction":
        if config.get("invert_sigmas"):
            raise TypeError(f"{name} with invert_sigmas is not known; describe it with FlowMatching(data_at=1, …)")
        # Trained up to t = 1; a shift moves the scheduler's own levels towards either end, and is applied twice.
        shift = min(1.0, float(config.get("shift") or 1.0))
        first = shift**2 / steps / (1 + (shift**2 - 1) / steps)
        return FlowMatching(first, 1 - 1e-3 / steps, time_scale=steps), prediction or own
    if config.get("timestep_type") == "continuous" and own == "v_prediction":
        # Networks told ¼ log σ, trained on a continuum: EDM's form with unit data.
        table = VP(schedule.alphas_cumprod).sigma_range  # pyright: ignore[reportAttributeAccessIssue]
        return EDM(config.sigma_min or table[0], config.sigma_max or table[1], 1.0), prediction or own
    return VP(schedule.alphas_cumprod), prediction or own  # pyright: ignore[reportAttributeAccessIssue]


def reverse_like(
    scheduler: Any,
    num_steps: int | None = None,
    *,
    eta: float = 0.0,
    data_loc: float = 0.0,
    data_scale: float = 1.0,
    record: bool = False,
    **timesteps: Any,
) -> Reverse:
    """The sampler that a scheduler runs, with its levels, its last step, its start and its noise.

    ``sample(p, n, sampler=reverse_like(scheduler, 50), seed=s)`` draws the same random numbers in the same order as the
    scheduler's own loop with ``torch.Generator().manual_seed(s)``, and follows its trajectory. The scheduler is
    copied, not changed. Networks that the scheduler asks at rounded times (DPM-Solver++ with Karras' levels)
    need ``integer_time=True`` in their term for that.

    Args:
        scheduler: one of the module's table.
        num_steps: as in the scheduler's ``set_timesteps``.
        eta: DDIM's share of noise; other schedulers fix theirs.
        data_loc: shift of the network's data, as in the term.
        data_scale: scale of the network's data, as in the term; levels are multiplied by it.
        record: keep the states of every level.
        **timesteps: further arguments of ``set_timesteps``, such as ``sigmas=`` or ``mu=``.

    Raises:
        TypeError: a scheduler that is not in the table.
        ValueError: an option of the scheduler that ``Reverse`` has no counterpart of; the message names it.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> sampler = reverse_like(DDIMScheduler(clip_sample=False), 4)
        >>> sampler.solver, [round(level, 3) for level in sampler.sigmas.begins]
        ('ddim', [17.379, 3.443, 0.958, 0.01])
    """
    require_diffusers()
    name = known(scheduler, tuple(_READERS))
    if name is None:
        raise TypeError(
            f"reverse_like knows {list(_READERS)}, got {type(scheduler).__name__}; convert it, e.g. "
            "DDIMScheduler.from_config(scheduler.config)"
        )
    if eta and name != "DDIMScheduler":
        raise ValueError(f"eta= is for DDIMScheduler; the noise of {name} is fixed by its own rule")
    if num_steps is None and not timesteps:
        raise ValueError("say how many steps: reverse_like(scheduler, 50)")
    own = copy.deepcopy(scheduler)
    own.set_timesteps(**timesteps) if num_steps is None else own.set_timesteps(num_steps, **timesteps)
    if own.config.get("thresholding"):
        raise ValueError(f"{name}(thresholding=True) rewrites its estimates row by row; Reverse has clip= only")
    ladder, settings = _READERS[name](own)
    if own.config.get("clip_sample"):
        if name == "HeunDiscreteScheduler":
            raise ValueError("HeunDiscreteScheduler(clip_sample=True) has no counterpart: Reverse clips no heun")
        bound = data_scale * float(own.config.get("clip_sample_range", 1.0))
        settings["clip"] = (data_loc - bound, data_loc + bound)
    if name == "DDIMScheduler":
        settings["eta"] = eta
    return Reverse(
        steps=len(ladder.begins), sigmas=_scaled(ladder, float(data_loc), float(data_scale)), record=record, **settings
    )


def require_diffusers() -> None:
    """Say how to install diffusers where it is missing."""
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise MissingExtra('diffusers networks need the extra: pip install "boltzmix[diffusers]"') from error


def known(obj: object, names: Sequence[str]) -> str | None:
    """The name, among those known, of an object's class or of a base of it."""
    return next((c.__name__ for c in type(obj).__mro__ if c.__name__ in names), None)


# ------------------------------------------------------------------------------------- ladders in the network's units


def _level(table: float | Tensor) -> float:
    """σ of ᾱ."""
    alpha = float(table)
    if alpha <= 0:
        raise ValueError(
            "a scheduler with zero terminal SNR starts at sigma = inf, where this parameterisation has no estimate; "
            'use timestep_spacing="leading", whose first level is finite'
        )
    return math.sqrt((1 - alpha) / alpha)


def _alpha(sigma: float) -> float:
    """Factor of a variance-preserving state."""
    return 1 / math.sqrt(1 + sigma * sigma)


def _preserving(begins: list[float], ends: list[float], **more: Any) -> Ladder:
    """Steps of a variance-preserving state, which is carried over unchanged from step to step and handed out."""
    after = [*begins[1:], 0.0]
    carry = [1.0 if e == b else _alpha(e) / _alpha(b) for e, b in zip(ends, after, strict=True)]
    return Ladder(tuple(begins), tuple(ends), tuple(carry), spread=1 / _alpha(begins[0]), **more)


def _ddim(own: Any) -> tuple[Ladder, dict[str, Any]]:
    table, gap = own.alphas_cumprod.double(), own.config.num_train_timesteps // own.num_inference_steps
    times = [int(t) for t in own.timesteps]
    last = _level(own.final_alpha_cumprod.double())
    ends = [_level(table[t - gap]) if t >= gap else last for t in times]
    return _preserving([_level(table[t]) for t in times], ends), {"solver": "ddim"}


def _ddpm(own: Any) -> tuple[Ladder, dict[str, Any]]:
    variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
    if own.variance_type not in variances:
        raise ValueError(f"variance_type={own.variance_type!r} of DDPMScheduler is not known; {list(variances)} are")
    table = own.alphas_cumprod.double()
    times = [int(t) for t in own.timesteps]
    before = [float(table[int(s)]) if (s := own.previous_timestep(t)) >= 0 else 1.0 for t in own.timesteps]
    lower, upper = [], []
    for t, other in zip(times, before, strict=True):
        alpha = float(table[t])
        beta = 1 - alpha / other
        # of the state at the step's end, in the σ coordinate; nothing is added at time 0
        lower.append(max((1 - other) / (1 - alpha) * beta, 1e-20) / other if t else 0.0)
        upper.append(beta / other if t else 0.0)
    ladder = _preserving(
        [_level(table[t]) for t in times], [_level(a) for a in before], lower=tuple(lower), upper=tuple(upper)
    )
    return ladder, {"solver": "ddpm", "variance": variances[own.variance_type]}


def _exploding(own: Any) -> tuple[Ladder, dict[str, Any]]:
    """Schedulers whose state is x_σ itself."""
    solver = _SOLVERS[known(own, tuple(_SOLVERS)) or ""]
    levels = own.sigmas.double().tolist()
    if solver == "heun":
        levels = [levels[0], *levels[1::2]]  # each level is listed for both of its evaluations
    return Ladder(tuple(levels[:-1]), tuple(levels[1:]), spread=float(own.init_noise_sigma)), {"solver": solver}


def _dpm(own: Any) -> tuple[Ladder, dict[str, Any]]:
    config = own.config
    if config.algorithm_type not in ("dpmsolver++", "sde-dpmsolver++"):
        raise ValueError(f"algorithm_type={config.algorithm_type!r} is not known; dpmsolver++ and sde-dpmsolver++ are")
    if config.solver_order > 2 or (config.solver_order == 2 and config.solver_type != "midpoint"):
        raise ValueError(
            f"solver_order={config.solver_order} with solver_type={config.solver_type!r} has no counterpart; "
            'order 1, and order 2 with "midpoint", have'
        )
    sde = 1.0 if config.algorithm_type.startswith("sde") else 0.0
    levels = own.sigmas.double().tolist()
    n = len(levels) - 1
    first = config.euler_at_final or (config.lower_order_final and n < 15) or config.final_sigmas_type == "zero"
    settings = {"solver": "dpmpp", "order": config.solver_order, "last_order": 1 if first else 2, "eta": sde}
    if config.use_flow_sigmas:
        return _flow_ladder(levels), settings
    return _preserving(levels[:-1], levels[1:]), settings


def _flow(own: Any) -> tuple[Ladder, dict[str, Any]]:
    for option in ("stochastic_sampling", "invert_sigmas"):
        if own.config.get(option):
            raise ValueError(f"FlowMatchEulerDiscreteScheduler({option}=True) has no counterpart")
    return _flow_ladder(own.sigmas.double().tolist()), {"solver": "euler"}


def _flow_ladder(times: list[float]) -> Ladder:
    """Steps of (1 − t) x0 + t ε, from t = 1 (where the state is pure noise) or below to t = 0 or above."""
    levels = [math.inf if t >= 1 else t / (1 - t) for t in times]
    carry = [1.0] * (len(levels) - 2) + [1 - times[-1]]
    spread = 1.0 if levels[0] == math.inf else 1 + levels[0]
    return Ladder(tuple(levels[:-1]), tuple(levels[1:]), tuple(carry), spread=spread)


def _scaled(ladder: Ladder, loc: float, scale: float) -> Ladder:
    """The ladder in the term's units, x = loc + scale · (the network's)."""
    assert ladder.spread is not None

    def square(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(scale * scale * v for v in values)

    return Ladder(
        tuple(scale * s for s in ladder.begins),
        tuple(scale * s for s in ladder.ends),
        ladder.carry,
        ladder.spread if ladder.begins[0] == math.inf else scale * ladder.spread,
        loc,
        square(ladder.lower),
        square(ladder.upper),
    )


_SOLVERS = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "EDMEulerScheduler": "euler",
}
_READERS: dict[str, Callable[[Any], tuple[Ladder, dict[str, Any]]]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "EulerDiscreteScheduler": _exploding,
    "EulerAncestralDiscreteScheduler": _exploding,
    "HeunDiscreteScheduler": _exploding,
    "EDMEulerScheduler": _exploding,
    "DPMSolverMultistepScheduler": _dpm,
    "FlowMatchEulerDiscreteScheduler": _flow,
}
