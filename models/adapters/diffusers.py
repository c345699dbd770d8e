"""Networks of the diffusers library, with the schedulers they were trained with, as terms.

A scheduler of diffusers is two things: the noise schedule and the target that a network was trained on, and
a sampler. Only the first is read here; its clipping, thresholding and spacing of steps are the sampler's
and do not change what the network knows. ``boltzmix.Reverse`` and the other samplers take that part over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import MissingExtra
from boltzmix.models.adapters.network import Condition, NetworkTerm
from boltzmix.models.adapters.schedule import EDM, VP, FlowMatching, Schedule

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
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")


class DiffusersTerm(NetworkTerm):
    """A :class:`NetworkTerm` whose network follows diffusers' calling convention."""

    def _call(self, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        return self.net(x_t, time, **conditions, return_dict=False)[0]

    def _time_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32)  # float16 has no step 999.5; the networks convert embeddings


def from_diffusers(
    net: Any,
    schedule: object,
    *,
    event_shape: Sequence[int] | None = None,
    prediction: str | None = None,
    null_label: int | None = None,
    null_context: Tensor | None = None,
    velocity: str | None = None,
    data_loc: float | Tensor = 0.0,
    data_scale: float = 1.0,
    cast: bool = False,
) -> NetworkTerm:
    """A diffusers network and its scheduler as one noised, score-only term.

    Args:
        net: ``UNet2DModel``, ``UNet2DConditionModel`` or ``DiTTransformer2DModel``.
        schedule: the scheduler that it was trained with, or a :class:`Schedule` (then with ``prediction=``).
        event_shape: ``(C, H, W)``; by default the configuration's channels and sample size.
        prediction: overrides the scheduler's prediction type.
        null_label: label of no class, for ``p`` without ``given(label=…)``; DiT's own is known.
        null_context: embedding of no prompt, ``(L, D)``, for ``p`` without ``given(context=…)``.
        velocity: ``"noise"`` or ``"data"``, the end that a flow's velocity points to.
        data_loc: shift of the network's data, which are (x − data_loc) / data_scale.
        data_scale: scale of the network's data; for the latents z of an autoencoder that the network saw as
            ``scaling_factor · z``, it is ``1 / scaling_factor``.
        cast: convert x for a network in another dtype, and its prediction back.

    Raises:
        MissingExtra: diffusers is not installed.
        TypeError: a network or a scheduler that is not known here; the message lists those that are.
        ValueError: no schedule, or an event shape that the network cannot take.

    Example:
        >>> from diffusers import DDIMScheduler, UNet2DModel
        >>> net = UNet2DModel(8, 1, 1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
        >>> p = from_diffusers(net.eval(), DDIMScheduler())
        >>> p.score(torch.zeros(2, 1, 8, 8), 1.0).shape
        torch.Size([2, 1, 8, 8])
    """
    require_diffusers()
    inner = getattr(net, "_orig_mod", net)  # under torch.compile
    kind = _known(inner, NETWORKS)
    if kind is None:
        raise TypeError(
            f"from_diffusers knows the networks {list(NETWORKS)}, got {type(net).__name__}; wrap another network in a "
            "function of (x_t, t): term(fn, schedule=…, prediction=…, event_shape=…)"
        )
    found, predicted = read_schedule(schedule, prediction)
    if velocity is not None:
        if not isinstance(found, FlowMatching):
            raise ValueError(f"velocity= is for flow matching, and the schedule is {type(found).__name__}")
        found = replace(found, velocity=velocity)  # pyright: ignore[reportArgumentType]
    config = inner.config
    channels, outputs = config.in_channels, config.out_channels or config.in_channels
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"{kind} maps {channels} channels to {outputs}: it expects more than the noisy state; wrap it in a "
            "function of (x_t, t) that adds the rest"
        )
    return DiffusersTerm(
        net,
        found,
        predicted,
        _event_shape(config, event_shape),
        conditions=_conditions(kind, config, null_label, null_context),
        learned_variance=outputs == 2 * channels,
        data_loc=data_loc,
        data_scale=data_scale,
        cast=cast,
    )


def from_pipeline(pipeline: Any, schedule: object = None, **hints: Any) -> NetworkTerm:
    """The network and scheduler of an unconditional pipeline, such as ``DDPMPipeline``.

    Raises:
        TypeError: pipelines with other parts (text encoders), whose conditions are the user's to prepare.
    """
    parts = pipeline.components
    net = parts.get("unet", parts.get("transformer"))
    extra = sorted(n for n, part in parts.items() if n not in ("unet", "transformer", "scheduler") and part is not None)
    if net is None or "scheduler" not in parts or extra:
        raise TypeError(
            f"{type(pipeline).__name__} also has {extra}: pass the parts, term(pipeline.unet, "
            "schedule=pipeline.scheduler), and encode prompts with its own encoders: p.given(context=embedding)"
        )
    return from_diffusers(net, parts["scheduler"] if schedule is None else schedule, **hints)


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
    name = _known(schedule, (*DISCRETE, *PRECONDITIONED, *FLOW))
    if name is None:
        raise TypeError(
            f"unknown scheduler {type(schedule).__name__}; known are {[*DISCRETE, *PRECONDITIONED, *FLOW]}, or a "
            "Schedule of boltzmix.models.adapters.schedule with prediction="
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
        return FlowMatching(1 / steps, 1 - 1 / steps, time_scale=steps), prediction or own
    if config.get("timestep_type") == "continuous" and own == "v_prediction":
        # Networks told ¼ log σ, trained on a continuum: EDM's form with unit data.
        table = VP(schedule.alphas_cumprod).sigma_range  # pyright: ignore[reportAttributeAccessIssue]
        return EDM(config.sigma_min or table[0], config.sigma_max or table[1], 1.0), prediction or own
    return VP(schedule.alphas_cumprod), prediction or own  # pyright: ignore[reportAttributeAccessIssue]


def require_diffusers() -> None:
    """Say how to install diffusers where it is missing."""
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise MissingExtra('diffusers networks need the extra: pip install "boltzmix[diffusers]"') from error


def _known(obj: object, names: Sequence[str]) -> str | None:
    return next((c.__name__ for c in type(obj).__mro__ if c.__name__ in names), None)


def _event_shape(config: Any, given: Sequence[int] | None) -> tuple[int, ...]:
    size = config.sample_size
    if given is None:
        if size is None:
            raise ValueError("the network's configuration has no sample_size: pass event_shape=(C, H, W)")
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return config.in_channels, height, width
    shape = tuple(given)
    if len(shape) != 3 or shape[0] != config.in_channels:
        raise ValueError(f"event_shape is (C, H, W) with C = {config.in_channels} for this network, got {shape}")
    return shape


def _conditions(kind: str, config: Any, null_label: int | None, null_context: Tensor | None) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    if kind == "DiTTransformer2DModel":
        classes = config.num_embeds_ada_norm
        found["label"] = Condition("class_labels", classes, null=classes if null_label is None else null_label)
    elif config.get("class_embed_type") is not None:
        raise TypeError(
            f"class_embed_type={config.class_embed_type!r} is not known: wrap the network in a function of (x_t, t)"
        )
    elif config.num_class_embeds is not None:
        found["label"] = Condition("class_labels", config.num_class_embeds, null=null_label)
    if kind == "UNet2DConditionModel":
        if config.get("addition_embed_type") is not None:
            raise TypeError(
                f"addition_embed_type={config.addition_embed_type!r} needs more than a context: wrap the network in a "
                "function of (x_t, t, encoder_hidden_states)"
            )
        width = config.get("encoder_hid_dim") or config.cross_attention_dim
        width = width if isinstance(width, int) else None
        found["context"] = Condition("encoder_hidden_states", shape=(None, width))
        if null_context is not None:
            null = found["context"].parse("null_context", null_context)
            found["context"] = replace(found["context"], null=null)
    for name, null in (("label", null_label), ("context", null_context)):
        if null is not None and name not in found:
            raise ValueError(f"null_{name}= was given, and this {kind} takes no {name}")
    rows = 0 if "label" not in found else found["label"].classes + (kind == "DiTTransformer2DModel")  # pyright: ignore[reportOptionalOperand]
    if null_label is not None and not 0 <= null_label < rows:
        raise ValueError(f"null_label is in 0 … {rows - 1} for this network, got {null_label}")
    return found
