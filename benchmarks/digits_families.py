"""The families on digits: architecture, training settings, likelihood and sampler of each, all of it here.

Every entry is class-conditional. Likelihoods are those of images without a label, from the same network.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.kernels import ULA
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import SMC, Annealed
from boltzmix.models import data
from boltzmix.models.diffusion_bound import diffusion_elbo

PIXELS = 64
TRAINING_IMAGES = 1438
CLASSES = 10
SHAPE = [1, 8, 8]

Draws = Callable[[Any, int, int], Tensor]
Nats = Callable[[Any, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        spec: the model, as :func:`boltzmix.models.load.build` takes it.
        fit: arguments of :func:`boltzmix.models.fit`, all but the number of steps.
        nats: −log p of images ``(N,)``: of levels for discrete families, of real numbers otherwise.
        kind: what these nats are.
        draw: ``(model, n, seed)`` to n images of each class in turn, ``(10 n, 1, 8, 8)``: image k has class k mod 10.
        discrete: whether the variables are pixel levels.
        prepared: whether the model's units are taken from eight noised copies of the training images, not from the
            first batch: for bases that are fitted to the data.
        most: steps at most, where more do harm; such a family does not use its budget up.
    """

    spec: dict[str, Any]
    fit: dict[str, Any]
    nats: Nats
    kind: str
    draw: Draws
    discrete: bool = False
    prepared: bool = False
    most: int | None = None

    def data(self) -> Any:
        """What ``fit`` is given: levels with labels, or an endless stream of them with noise added."""
        return data.digit_levels("train") if self.discrete else data.dequantised_digits("train")


def grey_levels(x: Tensor) -> Tensor:
    """Draws as the grey values k/8 − 1 that the classifier knows: levels as they are, real numbers to their level.

    Real numbers beyond [−1, 1] go to the first or the last level.
    """
    if not x.is_floating_point():
        return x.float() / 8 - 1
    return ((x + 1) / 2 * 17).floor().clamp(0, 16) / 8 - 1


# ----------------------------------------------------------------- likelihoods


def exact(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Of normalised families."""
    with torch.no_grad():
        return model.energy(x)


def bounded(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """The variational bound of a noised term in the limit of ever more levels."""
    with torch.no_grad():
        return -diffusion_elbo(model, x, draws=24, repeats=2, generator=generator).value


def labels_summed(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Of the even mixture of an energy model's classes, each with its log Z by SMC with 1,000 particles."""
    terms = [model.given(label=k) for k in range(CLASSES)]
    found = [sample(term, 1000, sampler=SMC(cess=0.95), init=term.start(), seed=0, progress=False) for term in terms]
    with torch.no_grad():
        parts = [-term.energy(x) - draw.info.extra["raw_log_z"] for term, draw in zip(terms, found, strict=True)]
    return math.log(CLASSES) - torch.stack(parts).logsumexp(0)


def importance_weighted(model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Burda, Grosse and Salakhutdinov's bound with 64 samples."""
    with torch.no_grad():
        return -model.iwae(x, 64, generator)


# -------------------------------------------------------------------- samplers


def by_class(draw: Callable[[Any, int, int], Tensor]) -> Draws:
    """Draws of each class by ``draw(term, n, seed)``, interleaved."""

    def draws(model: Any, n: int, seed: int) -> Tensor:
        with torch.no_grad():
            found = [draw(model.given(label=k), n, CLASSES * seed + k) for k in range(CLASSES)]
        return torch.stack(found, 1).flatten(0, 1)

    return draws


def ancestral(term: Any, n: int, seed: int) -> Tensor:
    """Exact draws of families that have them."""
    return term.sample(n, torch.Generator().manual_seed(seed))


def observed(term: Any, n: int, seed: int) -> Tensor:
    """The images of exact joint draws of images and latents: with the noise of p(x | z), as the density has it."""
    return term.sample(n, torch.Generator().manual_seed(seed))["x"]


def sampled(sampler: Sampler) -> Draws:
    """Draws by a sampler of the library."""
    return by_class(lambda term, n, seed: sample(term, n, sampler=sampler, seed=seed, progress=False).x)  # pyright: ignore[reportArgumentType, reportReturnType]


def from_base(term: Any, n: int, seed: int) -> Tensor:
    """SMC from an energy model's base with sixteen particles for each draw kept."""
    draw = sample(term, 16 * n, sampler=SMC(cess=0.95), init=term.start(), seed=seed, progress=False)
    kept = torch.randperm(16 * n, generator=torch.Generator().manual_seed(seed))[:n]
    return draw.x[kept]  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue]


# --------------------------------------------------------------- architectures


def _spec(family: str, net: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    shared = {"event_shape": SHAPE, "num_classes": CLASSES}
    found: dict[str, Any] = {"class": family, "arguments": {**shared, **arguments}}
    return found if net is None else {**found, "net": net}


def _net(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class": kind, "arguments": {**arguments, "num_classes": CLASSES}}


def _dense(inputs: Any, outputs: Any, depth: int) -> dict[str, Any]:
    return _net("Dense", inputs=inputs, outputs=outputs, hidden=128, depth=depth)


def _unet(attention: bool = True) -> dict[str, Any]:
    return _net("UNet", channels=1, hidden=[32, 64], attention=attention)


def _base() -> dict[str, Any]:
    return _net("GaussianBase", event_shape=SHAPE, covariance="full")


_NOISE = {"sigma_data": 0.6, "dropout": 0.1}
_DIFFUSION = {"lr": 2e-3, "batch_size": 128, "ema": 0.998}
_FLOW = {"lr": 2e-3, "batch_size": 128, "ema": 0.999}
_VAE = {"lr": 1e-3, "batch_size": 128, "ema": 0.999}
_ORDERED = {"lr": 3e-3, "batch_size": 64, "ema": 0.99, "weight_decay": 0.1}

FAMILIES: dict[str, Family] = {
    "diffusion": Family(
        _spec("Diffusion", _unet(), sigma_range=[0.01, 20.0], noise=[-1.0, 1.4], **_NOISE),
        {**_DIFFUSION, "lr": 3e-3, "weight_decay": 0.3},
        bounded,
        "bound",
        sampled(Reverse(steps=30)),
    ),
    "dit": Family(
        _spec(
            "Diffusion",
            _net("DiT", channels=1, size=8, patch=2, width=64, depth=4, heads=4),
            sigma_range=[0.01, 20.0],
            noise=[-1.0, 1.4],
            **_NOISE,
        ),
        _DIFFUSION,
        bounded,
        "bound",
        sampled(Reverse(steps=30)),
    ),
    "energy-diffusion": Family(
        _spec(
            "EnergyDiffusion",
            _unet(attention=False),
            sigma_range=[0.01, 20.0],
            noise=[-1.0, 1.4],
            sigma_detail=0.05,
            level_weight=0.05,
            **_NOISE,
        ),
        _DIFFUSION,
        bounded,
        "bound",
        sampled(Annealed(levels=48, sweeps=1)),
    ),
    "flow-matching": Family(
        _spec("FlowMatching", _unet(), noise=[-0.5, 1.3], t_range=[0.01, 0.98], **_NOISE),
        _DIFFUSION,
        bounded,
        "bound",
        sampled(Reverse(steps=30)),
    ),
    "ncsn": Family(
        _spec("NCSN", _unet(), levels=16, sigma_range=[0.02, 10.0], parameterization="epsilon", **_NOISE),
        _DIFFUSION,
        bounded,
        "bound",
        sampled(Annealed(levels=24, kernel=ULA(5e-4), sweeps=8)),
    ),
    "energy-pcd": Family(
        _spec(
            "EnergyModel",
            _net("EnergyConv", channels=1, hidden=[16, 32, 64]),
            base=_base(),
            objective={"class": "ContrastiveDivergence", "arguments": {"capacity": 220, "steps": 5}},
        ),
        {"lr": 1e-3, "batch_size": 128, "ema": 0.995},
        labels_summed,
        "estimate, classes summed, log Z by SMC",
        by_class(from_base),
        prepared=True,
        most=500,
    ),
    "energy-nce": Family(
        _spec(
            "EnergyModel",
            _net("EnergyConv", channels=1, hidden=[16, 32, 64]),
            base=_base(),
            objective={"class": "NoiseContrastive", "arguments": {"ratio": 2}},
        ),
        {"lr": 2e-3, "batch_size": 128, "ema": 0.995, "weight_decay": 0.05},
        labels_summed,
        "estimate, classes summed, log Z by SMC",
        by_class(from_base),
        prepared=True,
        most=800,
    ),
    "flow": Family(
        _spec("Flow", kind="spline", transforms=2, hidden=[128], bins=8),
        {**_FLOW, "weight_decay": 0.3},
        exact,
        "exact",
        by_class(ancestral),
    ),
    "glow": Family(
        _spec("Glow", levels=2, steps=4, hidden=64, bounds=[-1, 1]),
        {**_FLOW, "weight_decay": 0.5},
        exact,
        "exact",
        by_class(ancestral),
    ),
    "continuous-flow": Family(
        _spec("ContinuousFlow", _net("MLP", dim=64, hidden=128), flatten=True, steps=4, kinetic=0.02, bounds=[-1, 1]),
        {**_FLOW, "weight_decay": 0.5},
        exact,
        "exact, but for the solver",
        by_class(ancestral),
    ),
    "vae": Family(
        _spec(
            "VAE",
            latent_shape=[16],
            std=0.3,
            noise="diagonal",
            dropout=0.3,
            encoder=_dense(SHAPE, 32, 2),
            decoder=_dense(16, SHAPE, 2),
        ),
        _VAE,
        importance_weighted,
        "bound, 64 samples",
        by_class(observed),
        most=8000,
    ),
    "hierarchical-vae": Family(
        _spec(
            "HierarchicalVAE",
            latents=[16, 8],
            std=0.3,
            noise="diagonal",
            dropout=0.3,
            encoder=_dense(SHAPE, 128, 1),
            top=_dense(128, 16, 1),
            bottom=_dense(136, 32, 1),
            middle=_dense(8, 32, 1),
            decoder=_dense(16, SHAPE, 1),
        ),
        _VAE,
        importance_weighted,
        "bound, 64 samples",
        by_class(observed),
        most=8000,
    ),
    "pixelcnn": Family(
        _spec(
            "Autoregressive",
            _net("PixelCNN", channels=1, outputs=12, levels=17, hidden=24, layers=2),
            levels=17,
            head="logistic",
            corruption=0.2,
        ),
        _ORDERED,
        exact,
        "exact",
        by_class(ancestral),
        discrete=True,
    ),
    "transformer": Family(
        _spec(
            "Autoregressive",
            _net("CausalTransformer", length=64, outputs=17, levels=17, hidden=48, depth=2, heads=4, expansion=2),
            levels=17,
            corruption=0.2,
        ),
        _ORDERED,
        exact,
        "exact",
        by_class(ancestral),
        discrete=True,
    ),
    "pixelcnn-reals": Family(
        _spec(
            "Autoregressive",
            _net("PixelCNN", channels=1, outputs=15, hidden=24, layers=2),
            continuous=True,
            interval=[-1, 1],
            corruption=0.2,
        ),
        _ORDERED,
        exact,
        "exact",
        by_class(ancestral),
    ),
}
