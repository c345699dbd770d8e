r"""Pipelines of the diffusers library as terms: the network, its scheduler, its autoencoder and its text encoders.

A pipeline becomes the density of what its network was trained on. With an autoencoder that is the density of the
autoencoder's latents z, in the autoencoder's own units: the network saw ``(z − shift) · scale``, and that factor stays
inside the term, so that pipelines that share an autoencoder compose whatever factor each of them used.

Text is encoded once, by the pipeline's own ``encode_prompt``, when a prompt is given; what comes out is frozen in the
term. With p the term without a prompt (what the pipeline takes where there is no negative prompt) and :math:`p_c` the
one with a prompt, the pipeline's ``guidance_scale = s`` is :math:`\hat\varepsilon_\emptyset + s (\hat\varepsilon_c -
\hat\varepsilon_\emptyset)`, which is the score of

.. math:: p_\emptyset \, (p_c / p_\emptyset)^s ,

and a negative prompt n replaces the reference: :math:`p_n (p_c / p_n)^s`. So ``bm.guidance(p, p.given(prompt=c), s)``
is the first, and ``p.given(prompt=c, negative_prompt=n).guided(s)`` the second.

Safety checkers, feature extractors, image processors and watermarks take no part in a density and are ignored: check
and convert the images yourself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.product import Product, guidance
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.variable import check_state
from boltzmix.models.adapters.diffusers import DiffusersTerm, network_arguments, require_diffusers
from boltzmix.models.adapters.network import HALF, network_dtype
from boltzmix.models.adapters.schedulers import reverse_like

IGNORED = ("safety_checker", "feature_extractor", "image_encoder", "image_processor")
READ = ("unet", "transformer", "scheduler", "vae", "tokenizer", "tokenizer_2", "tokenizer_3")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
SIZES = ("original_size", "crop", "target_size")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a term keeps of its pipeline beside the network; the term neither moves nor trains them.

    Args:
        pipeline: the pipeline itself, for its ``encode_prompt``.
        scheduler: for :meth:`PipelineTerm.reverse`.
        vae: the autoencoder, None for networks on pixels.
        encode: prompt, device → what the network is conditioned on, by name, with a batch of one.
        sizes: whether the network is told image sizes (SDXL).
        standardised: latents whose channels were standardised stay in the network's units.
    """

    pipeline: Any
    scheduler: Any
    vae: Any
    encode: Callable[[Any, str, Any], dict[str, Tensor]] | None
    sizes: bool
    standardised: bool


class PipelineTerm(DiffusersTerm):
    """A pipeline's network as a term that takes prompts and decodes its draws; made by ``boltzmix.term(pipeline)``.

    ``given(prompt="a cat")`` is the density given that prompt. ``given(prompt="a cat", negative_prompt="blurry")`` is
    the same density, and names the prompt whose density is its :attr:`reference`; the negative prompt enters with
    :meth:`guided`. SDXL's ``original_size``, ``crop`` and ``target_size`` are given beside a prompt or alone, and the
    reference keeps them. ``label``, ``context`` and what else the network takes can be given as they are.

    Raises:
        TypeError: names that the pipeline does not take, or a prompt that is no string.
        ValueError: a prompt for a pipeline without its text encoder.
    """

    def __init__(
        self, *arguments: Any, parts: Parts, reference: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Keep the parts; the rest is the network's."""
        super().__init__(*arguments, **options)
        self.parts = parts
        self._reference = dict(reference) if reference else None
        for name, value in (reference or {}).items():
            if isinstance(value, Tensor):
                self.register_buffer(f"reference_{name}", value)
        free = set(self.conditions)
        if "context" in free:
            free |= {"prompt", "negative_prompt"}
        if parts.sizes and "time_ids" in free:
            free |= set(SIZES)
        self.conditions = frozenset(free)

    # ------------------------------------------------------------- conditions

    def _given(self, **condition: Any) -> "PipelineTerm":
        reference = self._negative()
        texts = {name: condition.pop(name) for name in ("prompt", "negative_prompt") if name in condition}
        sizes = {name: condition.pop(name) for name in SIZES if name in condition}
        if "prompt" in texts:
            encoded = self._encoded(texts["prompt"])
            twice = sorted(set(encoded) & set(condition))
            if twice:
                raise ValueError(f"a prompt sets {sorted(encoded)}, and {twice} was given beside it: give one of them")
            condition |= encoded
        if "negative_prompt" in texts:
            reference = self._encoded(texts["negative_prompt"])
        if sizes:
            if "time_ids" in condition:
                raise ValueError(f"{sorted(sizes)} are time_ids in words: give one of them")
            condition["time_ids"] = self._time_ids(**sizes)
        values = self._values()
        frozen = {name: values[name] for name in self._frozen}
        return self._view(frozen | condition, reference=reference)  # pyright: ignore[reportReturnType]

    def _view(self, given: Mapping[str, object], **more: Any) -> "PipelineTerm":
        return super()._view(given, parts=self.parts, **more)  # pyright: ignore[reportReturnType]

    def _negative(self) -> dict[str, Any] | None:
        """The reference's conditions as they are now (a module's ``.to`` moves them)."""
        if self._reference is None:
            return None
        return {n: getattr(self, f"reference_{n}") if isinstance(v, Tensor) else v for n, v in self._reference.items()}

    def _encoded(self, prompt: object) -> dict[str, Any]:
        parts = self.parts
        if not isinstance(prompt, str):
            raise TypeError(
                f"a prompt is one string, got {type(prompt).__name__}; make one term per prompt, they share one forward"
            )
        if parts.encode is None:
            raise ValueError(
                f"{type(parts.pipeline).__name__} holds no text encoder: load the pipeline with it, or give the "
                "embeddings, p.given(context=…)"
            )
        return encode(parts.pipeline, parts.encode, prompt, self.net)

    def _time_ids(self, **sizes: Any) -> Tensor:
        return time_ids(self.parts.pipeline, self.event_shape, self.net, **sizes)

    @property
    def reference(self) -> "PipelineTerm":
        """What :meth:`guided` starts from: the negative prompt's density, or that without prompt and label."""
        values = self._values()
        kept = {name: values[name] for name in self._frozen if name == "time_ids"}
        return self._view(kept | (self._negative() or {}))

    def guided(self, power: object) -> Product:
        r"""``reference · (self / reference) ** power``: the pipeline's ``guidance_scale``."""
        return guidance(self.reference, self, power)

    # ------------------------------------------------------ images and latents

    def decode(self, x: Tensor, *, max_rows: int = 8) -> Tensor:
        """Images ``(N, 3, H, W)`` in [0, 1] of draws x, clamped there as the pipeline does, ``max_rows`` at a time.

        Raises:
            ValueError: x is not shaped like the term's draws.
            NonFinite: an autoencoder in half precision overflowed.
        """
        check_state(x, self.variables, f"{self.name()}.decode()")
        if isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1:
            raise ValueError(f"max_rows is a positive int, got {max_rows!r}")
        vae = self.parts.vae
        if vae is None:
            return (x / 2 + 0.5).clamp(0, 1)
        own = network_dtype(vae) or x.dtype
        if self.parts.standardised:
            mean, deviation = standardisation(vae.config, x)
            x = x * deviation / vae.config.scaling_factor + mean
        images = []
        with torch.no_grad():
            for part in x.split(max_rows):
                images.append(vae.decode(part.to(dtype=own, device=vae.device), return_dict=False)[0].to(x))
        found = torch.cat(images) if images else x.new_zeros(0, 3, *x.shape[2:])
        if own in HALF and not bool(torch.isfinite(found).all()):
            raise NonFinite(f"the autoencoder overflows in {own}: convert it, pipeline.vae.to(torch.float32)")
        return (found / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor, *, max_rows: int = 8) -> Tensor:
        """Latents of images ``(N, 3, H, W)`` in [0, 1]: the mode of the autoencoder's posterior.

        Raises:
            ValueError: images of a size whose latents are not the term's.
        """
        vae = self.parts.vae
        scaled = 2 * images - 1
        if vae is not None:
            own = network_dtype(vae) or images.dtype
            with torch.no_grad():
                parts = [
                    vae.encode(part.to(dtype=own, device=vae.device)).latent_dist.mode().to(images)
                    for part in scaled.split(max_rows)
                ]
            scaled = torch.cat(parts)
            if self.parts.standardised:
                mean, deviation = standardisation(vae.config, scaled)
                scaled = (scaled - mean) * vae.config.scaling_factor / deviation
        if scaled.shape[1:] != self.event_shape:
            raise ValueError(
                f"images {tuple(images.shape)} have latents of shape {tuple(scaled.shape[1:])} and this term is over "
                f"{self.event_shape}: resize them, or build the term with event_shape={tuple(scaled.shape[1:])}"
            )
        return scaled

    def to_network(self, x: Tensor) -> Tensor:
        """x in the network's units, those of the pipeline's ``latents=`` and ``output_type="latent"``."""
        return (x - self._shift(x)) / self.data_scale

    def from_network(self, latents: Tensor) -> Tensor:
        """The pipeline's latents as states of this term."""
        return latents * self.data_scale + self._shift(latents)

    def reverse(self, num_steps: int, *, scheduler: Any = None, **options: Any) -> Reverse:
        """The sampler that the pipeline runs, see :func:`~boltzmix.models.adapters.schedulers.reverse_like`.

        ``sample(q, n, sampler=p.reverse(50), seed=s)`` draws, from the same random numbers, what the pipeline draws
        with ``generator=torch.Generator().manual_seed(s)`` and ``num_images_per_prompt=n``.

        Args:
            num_steps: the pipeline's ``num_inference_steps``.
            scheduler: another one than the pipeline's own.
            **options: of ``reverse_like``: ``eta=``, ``record=``, ``mu=``, ….
        """
        scheduler = self.parts.scheduler if scheduler is None else scheduler
        if isinstance(self._location, Tensor):
            raise ValueError("reverse() needs data_loc to be a number; use boltzmix.Reverse(…)")
        if scheduler.config.get("use_dynamic_shifting") and "mu" not in options:
            options["mu"] = self._dynamic_shift(scheduler.config)
        return reverse_like(scheduler, num_steps, data_loc=float(self._location), data_scale=self.data_scale, **options)

    def _dynamic_shift(self, config: Any) -> float:
        """The shift for this many patches, linear between the scheduler's two anchors."""
        patch = getattr(self.net, "_orig_mod", self.net).config.get("patch_size") or 1
        patches = (self.event_shape[1] // patch) * (self.event_shape[2] // patch)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
        return low + (patches - few) * (high - low) / (many - few)


def from_pipeline(
    pipeline: Any,
    schedule: object = None,
    *,
    event_shape: Sequence[int] | None = None,
    prediction: str | None = None,
    velocity: str | None = None,
    null_label: int | None = None,
    null_context: Tensor | None = None,
    data_loc: float | Tensor | None = None,
    data_scale: float | None = None,
    cast: bool = False,
    integer_time: bool = False,
    max_rows: int | None = None,
) -> PipelineTerm:
    """A pipeline as one noised, score-only term.

    Known are pipelines that denoise one state with one network: unconditional (``DDPMPipeline``, ``DDIMPipeline``),
    by class (``DiTPipeline``), by text (``StableDiffusionPipeline``, ``StableDiffusionXLPipeline``,
    ``PixArtAlphaPipeline``, ``StableDiffusion3Pipeline``). Safety checkers and image processors are ignored.

    Args:
        pipeline: the pipeline, as ``from_pretrained`` returns it.
        schedule: another scheduler than the pipeline's own.
        event_shape: ``(C, H, W)`` of the state; by default what the network was trained on.
        prediction, velocity, null_label, null_context, cast, integer_time, max_rows: as in ``from_diffusers``.
        data_loc: by default the autoencoder's shift factor.
        data_scale: by default one over the autoencoder's scaling factor.

    Raises:
        MissingExtra: diffusers is not installed.
        TypeError: a pipeline with other parts, whose conditions are the user's to prepare.
        ValueError: an autoencoder with another number of channels than the network.
    """
    require_diffusers()
    components = pipeline.components
    net = components.get("unet") or components.get("transformer")
    scheduler = components.get("scheduler")
    other = sorted(
        name for name, part in components.items() if part is not None and name not in (*READ, *ENCODERS, *IGNORED)
    )
    if net is None or scheduler is None or other:
        raise TypeError(
            f"{type(pipeline).__name__} " + (f"also has {other}" if other else "has no network with a scheduler") + ": "
            "pass its network and scheduler, term(pipeline.unet, schedule=pipeline.scheduler), with what that is "
            "conditioned on, p.given(context=embedding)"
        )
    if getattr(pipeline.config, "requires_aesthetics_score", False):
        raise TypeError("a refiner is told an aesthetics score; use the base model's pipeline")
    vae = components.get("vae")
    nulls: dict[str, Any] = {"label": null_label, "context": null_context}
    schedule = scheduler if schedule is None else schedule
    arguments, options = network_arguments(net, schedule, event_shape, prediction, velocity, nulls)
    names, shape = options["conditions"], arguments[3]
    standardised = vae is not None and vae.config.get("latents_mean") is not None
    if vae is not None:
        channels = vae.config.get("latent_channels")
        if channels is not None and channels != shape[0]:
            raise ValueError(
                f"the autoencoder has {channels} latent channels and the network {shape[0]}: they do not belong "
                "together; load both from one checkpoint"
            )
        if not standardised:
            scaling = float(vae.config.get("scaling_factor") or 1.0)
            data_scale = 1 / scaling if data_scale is None else data_scale
            data_loc = float(vae.config.get("shift_factor") or 0.0) if data_loc is None else data_loc
    encoders = [components.get(name) for name in ENCODERS]
    encoder = _encoder(pipeline, arguments[0], names) if any(e is not None for e in encoders) else None
    parts = Parts(pipeline, scheduler, vae, encoder, "time_ids" in names, standardised)
    found: dict[str, Tensor] = {}
    if encoder is not None and null_context is None:
        found = encode(pipeline, encoder, "", net)
        if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
            found = {name: torch.zeros_like(value) for name, value in found.items()}
    if parts.sizes:
        found["time_ids"] = time_ids(pipeline, shape, net)
    options["conditions"] = {
        name: replace(condition, null=condition.parse(f"the pipeline's {name}", found[name]))
        if name in found
        else condition
        for name, condition in names.items()
    }
    return PipelineTerm(
        *arguments,
        **options,
        parts=parts,
        data_loc=0.0 if data_loc is None else data_loc,
        data_scale=1.0 if data_scale is None else data_scale,
        cast=cast,
        integer_time=integer_time,
        max_rows=max_rows,
    )


# ---------------------------------------------------------------------------------------------------- prompts and sizes


def encode(pipeline: Any, encoder: Callable[..., dict[str, Tensor]], prompt: str, net: Any) -> dict[str, Tensor]:
    """What the network is conditioned on for one prompt, without a batch dimension, in the network's dtype."""
    with torch.no_grad():
        found = encoder(pipeline, prompt, pipeline._execution_device)
    like = next(p for p in net.parameters() if p.is_floating_point())
    return {name: value[0].detach().to(like) for name, value in found.items()}


def time_ids(
    pipeline: Any,
    shape: Sequence[int],
    net: Any,
    original_size: object = None,
    crop: object = None,
    target_size: object = None,
) -> Tensor:
    """SDXL's six numbers: (height, width) before cropping, (top, left) of the crop, (height, width) wanted."""
    size = (shape[1] * pipeline.vae_scale_factor, shape[2] * pipeline.vae_scale_factor)
    numbers: list[float] = []
    for name, value, default in (
        ("original_size", original_size, size),
        ("crop", crop, (0, 0)),
        ("target_size", target_size, size),
    ):
        pair = default if value is None else value
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(v, (int, float)) for v in pair):
            raise ValueError(f"{name} is a pair of numbers, (height, width) or (top, left), got {pair!r}")
        numbers += [float(v) for v in pair]
    return torch.tensor(numbers).to(next(p for p in net.parameters() if p.is_floating_point()))


def _encoder(pipeline: Any, net: Any, names: Mapping[str, object]) -> Callable[..., dict[str, Tensor]] | None:
    """How this pipeline encodes a prompt, from what its network is conditioned on."""
    if "context" not in names:
        return None
    if not hasattr(pipeline, "encode_prompt"):
        raise TypeError(
            f"{type(pipeline).__name__} has no encode_prompt(): pass its network and scheduler, "
            "term(pipeline.unet, schedule=pipeline.scheduler), and encode prompts yourself, p.given(context=embedding)"
        )
    if "mask" in names:
        return _encode_pixart
    if "pooled" in names:
        return _encode_sd3
    return _encode_sdxl if "text_embeds" in names else _encode_sd


def _encode_sd(pipeline: Any, prompt: str, device: Any) -> dict[str, Tensor]:
    return {"context": pipeline.encode_prompt(prompt, device, 1, False)[0]}


def _encode_sdxl(pipeline: Any, prompt: str, device: Any) -> dict[str, Tensor]:
    context, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    return {"context": context, "text_embeds": pooled}


def _encode_sd3(pipeline: Any, prompt: str, device: Any) -> dict[str, Tensor]:
    context, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, device, do_classifier_free_guidance=False)
    return {"context": context, "pooled": pooled}


def _encode_pixart(pipeline: Any, prompt: str, device: Any) -> dict[str, Tensor]:
    context, mask, _, _ = pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, device=device, clean_caption=True
    )
    return {"context": context, "mask": mask}


def standardisation(config: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents' channels, ``(C, 1, 1)``."""
    mean, deviation = (torch.tensor(config[name]).to(like)[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, deviation
