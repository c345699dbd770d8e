"""One 4-d Gaussian, N(MEAN, COVARIANCE), written in every family: what one says of it, the others must say.

``FAMILIES["name"]`` holds a factory of a term over ``(4,)`` in float64 (float32 where the row says so), and the error
that its score may have where the family only comes near the Gaussian. A new family joins by one row; a trained one
states what it was measured to reach.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import AffineTransform, MultivariateNormal, TransformedDistribution

from boltzmix.compose import Gaussian, GaussianMixture, affine
from boltzmix.compose.term import Term
from boltzmix.models import (
    NCSN,
    VAE,
    Autoregressive,
    ContinuousFlow,
    Diffusion,
    EnergyDiffusion,
    EnergyModel,
    Flow,
    FlowMatching,
    Glow,
    ODEDensity,
    Reward,
    ScoreMatching,
    fit,
    schedules,
)
from boltzmix.models.adapters import term
from boltzmix.models.nets import CausalTransformer
from boltzmix.models.schedules import EDM, VE, VP, Cosine, Schedule

D = torch.float64
DIM = 4
MEAN = torch.tensor([0.5, -0.4, 0.2, -0.1], dtype=D)
_FACTOR = torch.tensor(
    [[0.9, 0.0, 0.0, 0.0], [0.5, 0.7, 0.0, 0.0], [-0.4, 0.5, 0.6, 0.0], [0.2, -0.3, 0.5, 0.6]], dtype=D
)
COVARIANCE = _FACTOR @ _FACTOR.mT
LEVELS = (0.3, 1.0, 5.0)  # within every family's range


@dataclass(frozen=True)
class Family:
    """One way to write the Gaussian.

    Args:
        make: builds the term; called anew by every test.
        error: largest error of its score at points of the Gaussian itself, at σ = None and at every level it takes.
        dtype: of its states.
        sigma: the level that ``sigma=None`` means: 0, or the smallest that a network was trained on.
        learned: fitted to draws, so that its error is the root mean square over draws of the Gaussian, whose own score
            has a root mean square of 4.5.
    """

    make: Callable[[], Term]
    error: float = 1e-8
    dtype: torch.dtype = D
    sigma: float = 0.0
    learned: bool = False


def truth(sigma: float = 0.0, dtype: torch.dtype = D) -> Gaussian:
    """N(MEAN, COVARIANCE + σ² I)."""
    return Gaussian(MEAN.to(dtype), (COVARIANCE + sigma**2 * torch.eye(DIM, dtype=D)).to(dtype))


def points(n: int, seed: int = 0, dtype: torch.dtype = D) -> torch.Tensor:
    """Draws of the Gaussian, twice as wide."""
    noise = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=D)
    return (MEAN + 2 * noise @ _FACTOR.mT).to(dtype)


def conditional(mask: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the coordinates that are not masked, given those that are."""
    a, b = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
    gain = torch.linalg.solve(COVARIANCE[b][:, b], COVARIANCE[b][:, a]).mT
    mean = MEAN[a] + gain @ (value.to(D)[b] - MEAN[b])
    return mean, COVARIANCE[a][:, a] - gain @ COVARIANCE[b][:, a]


def exact_score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """∇ log N(x; MEAN, COVARIANCE + σ² I), σ being () or (N,)."""
    variance = (sigma.to(D) ** 2).reshape(-1, 1, 1) * torch.eye(DIM, dtype=D) + COVARIANCE
    return -torch.linalg.solve(variance, (x.to(D) - MEAN)[..., None])[..., 0].to(x)


def exact_energy(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """−log N(x; MEAN, COVARIANCE + σ² I)."""
    variance = (sigma.to(D) ** 2).reshape(-1, 1, 1) * torch.eye(DIM, dtype=D) + COVARIANCE
    gap = x.to(D) - MEAN
    power = (gap * torch.linalg.solve(variance, gap[..., None])[..., 0]).sum(-1)
    return (0.5 * (power + torch.logdet(2 * math.pi * variance))).to(x)


class ExactNet(nn.Module):
    """What a diffusion network of this Gaussian would have learned, in the coordinates of ``Denoiser``."""

    def __init__(self, sigma_data: float, scalar: bool) -> None:
        super().__init__()
        self.sigma_data, self.scalar, self.num_classes = sigma_data, scalar, None
        self.nothing = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x_in: torch.Tensor, c_noise: torch.Tensor, label: object = None) -> torch.Tensor:
        sigma = (4 * c_noise).exp()
        spread = (sigma**2 + self.sigma_data**2).sqrt()
        centred = x_in * spread[:, None]
        x = centred + MEAN
        if self.scalar:
            size = 0.5 * DIM * (2 * math.pi * spread**2).log()
            base = 0.5 * (centred / spread[:, None]).square().sum(1) + size
            return ((exact_energy(x, sigma) - base) * sigma / self.sigma_data)[:, None]
        scale = (sigma * spread / self.sigma_data)[:, None]
        return (exact_score(x, sigma) + centred / spread[:, None] ** 2) * scale


def diffusion(kind: type, sigma_data: float = 0.7) -> Term:
    net = ExactNet(sigma_data, kind is EnergyDiffusion)
    return kind(net, (DIM,), sigma_data=sigma_data, sigma_range=(0.02, 20.0), loc=MEAN)


def network(schedule: Schedule, prediction: str) -> Term:
    """What a network trained under a schedule of its own, on its own target, would have learned."""

    def net(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = schedule.level(t.clamp(*sorted(float(schedule.time(torch.tensor(s))) for s in schedule.sigma_range)))
        x = x_t / schedule.alpha(sigma)[:, None]
        noise = -exact_score(x, sigma) * sigma[:, None]  # E[ε | x], and targets are linear in (x0, ε)
        return schedule.target(prediction, x - sigma[:, None] * noise, noise, sigma)

    return term(net, schedule=schedule, prediction=prediction, event_shape=(DIM,))


def zuko_flow() -> Term:
    """x = MEAN + L z, with a triangular map inside zuko's lazy classes."""
    import zuko

    class Triangular(torch.distributions.Transform):
        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def _call(self, x):
            return torch.linalg.solve_triangular(_FACTOR, (x - MEAN)[..., None], upper=False)[..., 0]

        def _inverse(self, y):
            return y @ _FACTOR.mT + MEAN

        def log_abs_det_jacobian(self, x, y):
            return -_FACTOR.diagonal().log().sum().expand(x.shape[:-1])

    return term(
        zuko.lazy.Flow(
            [zuko.lazy.UnconditionalTransform(Triangular)],
            zuko.lazy.UnconditionalDistribution(
                zuko.distributions.DiagNormal, torch.zeros(DIM, dtype=D), torch.ones(DIM, dtype=D), buffer=True
            ),
        )
    )


def log_density(x):
    return -exact_energy(x, torch.zeros((), dtype=D))


def two_halves() -> Term:
    """The Gaussian as a product of two: precisions add."""
    precision = torch.linalg.inv(COVARIANCE)
    part = 0.4 * torch.eye(DIM, dtype=D) / torch.linalg.eigvalsh(COVARIANCE)[-1]
    rest = precision - part
    other = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=D)
    mean = torch.linalg.solve(rest, precision @ MEAN - part @ other)
    return Gaussian(other, torch.linalg.inv(part)) * Gaussian(mean, torch.linalg.inv(rest))


def pulled() -> Term:
    """A wider Gaussian under the quadratic reward that makes it this one."""
    gap = 0.5 * torch.linalg.inv(COVARIANCE)

    def reward(x):
        return -0.5 * 3.0 * ((x - MEAN) @ gap * (x - MEAN)).sum(-1)

    return Gaussian(MEAN, 2 * COVARIANCE) * Reward(reward, (DIM,), beta=3.0)


class Quadratic(nn.Module):
    """The energy itself, for an energy model without a base."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x: torch.Tensor, label: object = None) -> torch.Tensor:
        return exact_energy(x, torch.zeros((), dtype=D))[:, None]


class ExactScore(nn.Module):
    """The score at σ = e^{4 c}, for a noise-conditional score network."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = None
        self.nothing = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: object = None) -> torch.Tensor:
        return exact_score(x, (4 * c_noise).exp())


class ExactVelocity(nn.Module):
    """E[ε − x0 | x_t] where ε and x0 are independent."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = None
        self.nothing = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x_t: torch.Tensor, c_noise: torch.Tensor, label: object = None) -> torch.Tensor:
        sigma = (4 * c_noise).exp()
        x = x_t * (1 + sigma)[:, None]
        noise = -exact_score(x, sigma) * sigma[:, None]
        return noise - (x - sigma[:, None] * noise)


_ROOT = torch.linalg.eigh(COVARIANCE).eigenvectors @ (
    torch.linalg.eigh(COVARIANCE).eigenvalues.sqrt()[:, None] * torch.linalg.eigh(COVARIANCE).eigenvectors.mT
)


def straight(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity of optimal transport from N(0, I) at t = 1: x0 = MEAN + √COVARIANCE ε, along straight lines."""
    t = torch.as_tensor(t, dtype=D).expand(len(x_t))[:, None, None]
    mixed = (1 - t) * _ROOT + t * torch.eye(DIM, dtype=D)
    noise = torch.linalg.solve(mixed, (x_t.to(D) - (1 - t[..., 0]) * MEAN)[..., None])[..., 0]
    return (noise - (MEAN + noise @ _ROOT)).to(x_t)


class StraightNet(nn.Module):
    """The same as a network of flow matching sees time, c = ¼ ln(t / (1 − t))."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = None
        self.nothing = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x_t: torch.Tensor, c_noise: torch.Tensor, label: object = None) -> torch.Tensor:
        return straight(x_t, torch.sigmoid(4 * c_noise))


class Linear(nn.Module):
    """An encoder or decoder of a linear-Gaussian autoencoder."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.num_classes = None
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: torch.Tensor, label: object = None) -> torch.Tensor:
        return x @ self.weight.mT + self.bias


def linear_vae() -> VAE:
    """x = MEAN + W z + s n with W Wᵀ + s² I = COVARIANCE: the marginal of x is the Gaussian; a joint term over x, z."""
    s = 0.5 * float(torch.linalg.eigvalsh(COVARIANCE)[0]) ** 0.5
    w = torch.linalg.cholesky(COVARIANCE - s**2 * torch.eye(DIM, dtype=D))
    nothing = torch.zeros(2 * DIM, DIM, dtype=D)
    return VAE(
        Linear(nothing, nothing[:, 0].clone()), Linear(w, MEAN.clone()), (DIM,), (DIM,), std=s, noise="fixed"
    ).double()


def _stream(n: int, generator: torch.Generator) -> torch.Tensor:
    return (MEAN + torch.randn(n, DIM, generator=generator, dtype=D) @ _FACTOR.mT).float()


@functools.cache
def fitted(kind: str) -> Term:
    """A family that has to learn the Gaussian, from 400 steps of the public fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Term = {
            "Flow": lambda: Flow((DIM,), "autoregressive", transforms=2, hidden=(32,)),
            "Glow": lambda: Glow((1, 2, 2), levels=1, steps=4, hidden=16),
            "Autoregressive": lambda: Autoregressive(
                CausalTransformer(DIM, 15, hidden=32, depth=1, heads=4), (DIM,), continuous=True
            ),
        }[kind]()
    shape = model.event_shape
    fit(model, lambda n, g: _stream(n, g).reshape(n, *shape), steps=400, batch_size=256, lr=5e-3, ema=0.98, seed=0)
    model = model.double().eval().requires_grad_(False)
    if shape == (DIM,):
        return model
    return term(lambda x: -model.energy(x.reshape(-1, *shape)), kind="log_prob", event_shape=(DIM,))


FAMILIES = {
    "Gaussian": Family(truth),
    "GaussianMixture": Family(lambda: GaussianMixture(MEAN.expand(2, DIM), COVARIANCE.expand(2, DIM, DIM), [1.0, 3.0])),
    "product": Family(two_halves),
    "power": Family(lambda: Gaussian(MEAN, 2.5 * COVARIANCE) ** 2.5),
    "affine": Family(lambda: affine(Gaussian(-MEAN, 4 * COVARIANCE), 0.5 * MEAN, -0.5)),
    "reward": Family(pulled),
    "torch MultivariateNormal": Family(lambda: term(MultivariateNormal(MEAN, COVARIANCE))),
    "torch transformed": Family(
        lambda: term(
            TransformedDistribution(
                MultivariateNormal(torch.zeros(DIM, dtype=D), 4 * COVARIANCE), [AffineTransform(MEAN, 0.5)]
            )
        )
    ),
    "callable log_prob": Family(lambda: term(log_density, kind="log_prob", event_shape=(DIM,))),
    "callable energy": Family(lambda: term(exact_energy, kind="energy", event_shape=(DIM,), path="noised")),
    "callable score": Family(
        lambda: term(exact_score, kind="score", event_shape=(DIM,), path="noised", sigma_range=(0.02, 50.0)),
        sigma=0.02,
    ),
    "zuko": Family(zuko_flow),
    "Diffusion": Family(lambda: diffusion(Diffusion), sigma=0.02),
    "EnergyDiffusion": Family(lambda: diffusion(EnergyDiffusion), sigma=0.02),
    "network VP noise": Family(lambda: network(VP.ddpm(), "epsilon"), sigma=VP.ddpm().sigma_range[0]),
    "network VP v": Family(lambda: network(VP.ddpm(), "v_prediction"), sigma=VP.ddpm().sigma_range[0]),
    "network cosine data": Family(lambda: network(Cosine(), "sample"), 1e-5, sigma=Cosine().sigma_range[0]),
    "network VE score": Family(lambda: network(VE(), "score"), sigma=VE().sigma_range[0]),
    "network EDM": Family(lambda: network(EDM(), "edm"), 1e-5, sigma=EDM().sigma_range[0]),
    "network flow matching": Family(
        lambda: network(schedules.FlowMatching(), "flow"), sigma=schedules.FlowMatching().sigma_range[0]
    ),
    "EnergyModel": Family(
        lambda: EnergyModel(Quadratic(), (DIM,), base=None, objective=ScoreMatching()),
    ),
    "NCSN": Family(lambda: NCSN(ExactScore(), (DIM,), sigma_range=(0.02, 20.0)), sigma=0.02),
    "FlowMatching": Family(
        lambda: FlowMatching(ExactVelocity(), (DIM,)), sigma=schedules.FlowMatching().sigma_range[0]
    ),
    "FlowMatching by optimal transport": Family(lambda: FlowMatching(StraightNet(), (DIM,), path="ot", steps=4), 2e-2),
    "ContinuousFlow": Family(lambda: ContinuousFlow.from_velocity(straight, (DIM,), steps=4).double(), 2e-2),
    "likelihood of a diffusion": Family(lambda: ODEDensity(diffusion(Diffusion), steps=24), 3e-2, sigma=0.02),
    "Flow": Family(lambda: fitted("Flow"), 0.4, learned=True),
    "Glow": Family(lambda: fitted("Glow"), 0.2, learned=True),
    "Autoregressive": Family(lambda: fitted("Autoregressive"), 0.8, learned=True),
}
