"""Networks of the diffusers library, with the schedulers they were trained with, as terms.

A scheduler of diffusers is two things: the noise schedule and the target that a network was trained on, and
a sampler. Only the first changes what the network knows; clipping, thresholding and the spacing of steps are the
sampler's. :func:`reverse_like` reads these into a ``Reverse`` that does what the scheduler does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.models.adapters.condition import Condition
from boltzmix.models.adapters.network import NetworkTerm
from boltzmix.models.adapters.schedulers import (
    DISCRETE,
    FLOW,
    PRECONDITIONED,
    known,
    read_schedule,
    require_diffusers,
    reverse_like,
)
from boltzmix.models.schedules import FlowMatching

__all__ = [
    "DISCRETE",
    "FLOW",
    "NETWORKS",
    "PRECONDITIONED",
    "DiffusersTerm",
    "from_diffusers",
    "network_arguments",
    "read_schedule",
    "reverse_like",
]

NETWORKS = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
TIME_BY_NAME = ("PixArtTransformer2DModel", "SD3Transformer2DModel")  # their second argument is the prompt


class DiffusersTerm(NetworkTerm):
    """A :class:`NetworkTerm` whose network follows diffusers' calling convention."""

    def _call(self, x_t: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        arguments: dict[str, Any] = {"return_dict": False}
        kind = known(getattr(self.net, "_orig_mod", self.net), NETWORKS)
        if kind == "PixArtTransformer2DModel":
            arguments["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        for keyword, value in conditions.items():
            outer, _, inner = keyword.partition(".")  # "added_cond_kwargs.time_ids" is an entry of a dictionary
            if inner:
                arguments.setdefault(outer, {})[inner] = value
            else:
                arguments[outer] = value
        if kind in TIME_BY_NAME:
            return self.net(x_t, timestep=time, **arguments)[0]
        return self.net(x_t, time, **arguments)[0]

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
    integer_time: bool = False,
    max_rows: int | None = None,
) -> NetworkTerm:
    """A diffusers network and its scheduler as one noised, score-only term.

    Args:
        net: ``UNet2DModel``, ``UNet2DConditionModel``, ``DiTTransformer2DModel``, ``PixArtTransformer2DModel`` or
            ``SD3Transformer2DModel``. What it is conditioned on, besides ``label`` and ``context``, depends on it:
            ``text_embeds`` and ``time_ids`` (SDXL), ``mask`` (PixArt), ``pooled`` (SD3).
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
        integer_time: ask at whole steps, as samplers of whole steps do at levels between them.
        max_rows: the most rows of one forward.

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
    nulls = {"label": null_label, "context": null_context}
    arguments, options = network_arguments(net, schedule, event_shape, prediction, velocity, nulls)
    return DiffusersTerm(
        *arguments,
        **options,
        data_loc=data_loc,
        data_scale=data_scale,
        cast=cast,
        integer_time=integer_time,
        max_rows=max_rows,
    )


def network_arguments(
    net: Any,
    schedule: object,
    event_shape: Sequence[int] | None,
    prediction: str | None,
    velocity: str | None,
    nulls: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a :class:`DiffusersTerm` needs to know of a network, read from its configuration."""
    require_diffusers()
    inner = getattr(net, "_orig_mod", net)  # under torch.compile
    kind = known(inner, NETWORKS)
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
    shape = _event_shape(config, event_shape)
    options = {"conditions": _conditions(kind, inner, nulls), "learned_variance": outputs == 2 * channels}
    return (net, found, predicted, shape), options


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


def _conditions(kind: str, inner: Any, nulls: Mapping[str, Any]) -> dict[str, Condition]:
    config, found = inner.config, {}
    if kind == "DiTTransformer2DModel":
        classes = config.num_embeds_ada_norm
        found["label"] = Condition("class_labels", classes, null=classes)
    elif kind == "PixArtTransformer2DModel":
        if inner.use_additional_conditions:
            raise TypeError("PixArt with resolution and aspect ratio as conditions is not known; see from_diffusers")
        found["context"] = Condition("encoder_hidden_states", shape=(None, config.caption_channels))
        found["mask"] = Condition("encoder_attention_mask", shape=(None,))
    elif kind == "SD3Transformer2DModel":
        found["context"] = Condition("encoder_hidden_states", shape=(None, config.joint_attention_dim))
        found["pooled"] = Condition("pooled_projections", shape=(config.pooled_projection_dim,))
    else:
        found = _unet_conditions(kind, config)
    for name, null in nulls.items():
        if null is None:
            continue
        if name not in found:
            raise ValueError(f"null_{name}= was given, and this {kind} takes no {name}")
        condition = found[name]
        if condition.classes is None:
            null = condition.parse(f"null_{name}", null)
        else:
            rows = condition.classes + (kind == "DiTTransformer2DModel")
            if not 0 <= null < rows:
                raise ValueError(f"null_{name} is in 0 … {rows - 1} for this network, got {null}")
        found[name] = replace(condition, null=null)
    return found


def _unet_conditions(kind: str, config: Any) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    if config.get("class_embed_type") is not None:
        raise TypeError(
            f"class_embed_type={config.class_embed_type!r} is not known: wrap the network in a function of (x_t, t)"
        )
    if config.num_class_embeds is not None:
        found["label"] = Condition("class_labels", config.num_class_embeds)
    if kind != "UNet2DConditionModel":
        return found
    if config.get("time_cond_proj_dim") is not None:
        raise TypeError(
            "time_cond_proj_dim: the network was distilled to take its guidance scale as an input, and a formula "
            "cannot set that; use the network that it was distilled from"
        )
    added = config.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise TypeError(
            f"addition_embed_type={added!r} needs more than a context: wrap the network in a "
            "function of (x_t, t, encoder_hidden_states)"
        )
    width = config.get("encoder_hid_dim") or config.cross_attention_dim
    found["context"] = Condition("encoder_hidden_states", shape=(None, width if isinstance(width, int) else None))
    if added == "text_time":
        found["text_embeds"] = Condition("added_cond_kwargs.text_embeds", shape=(None,))
        found["time_ids"] = Condition("added_cond_kwargs.time_ids", shape=(None,))
    return found
