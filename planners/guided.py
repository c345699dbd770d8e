r"""A trajectory prior times tasks, as a score at every noise level: tasks act on the denoised trajectory.

A task says what it means about a clean trajectory, and the noisy one at a large σ is nowhere near. For a prior p and
tasks of energy :math:`E(x_0) = \sum_k w_k E_k(x_0)`, the noised density of the composition is

.. math::
    p_\sigma(x) \propto p(x; \sigma) \int e^{-E(x_0)}\, p(x_0 \mid x)\, dx_0,
    \qquad \nabla \log p_\sigma(x) = \frac{\mathbb{E}[x_0 \mid x, \text{tasks}] - x}{\sigma^2}.

The prior's network gives :math:`\hat x_0 = E[x_0 \mid x]`. With :math:`p(x_0 \mid x) \approx N(\hat x_0, V)` the mean
under the tasks is close to the mode,

.. math::
    y = \arg\min_y \tfrac12 (y - \hat x_0)^\top V^{-1} (y - \hat x_0) + E(y),
    \qquad V(\sigma) = \frac{v \sigma^2}{v + \sigma^2}\, K,

so that the score is :math:`(y - x) / \sigma^2`: one forward of the network a level, and the mode is found by a few
gradients of the tasks, which are cheap. v is the variance of the data in normalised coordinates, and K a correlation
along time (:math:`K_{ij} = e^{-(i-j)^2 / 2\ell^2}`), because neighbouring tokens of a smooth motion move together. For
quadratic tasks and a prior that is N(m, v) with this K the score is exact; for other priors and for sharp tasks it is
an approximation, whose bias the corrector and the exact samplers (SMC, Annealed, FKC on the product itself) do not
have. The explicit first-order version, :math:`y = \hat x_0 - V \nabla E(\hat x_0)`, is Diffuser's guidance (Janner, Du,
Tenenbaum and Levine, 2022, *Planning with diffusion for flexible behavior synthesis*); minimising is the proximal step
of plug-and-play restoration (Zhu et al., 2023, *Denoising diffusion models for plug-and-play image restoration*),
stable for penalties of any sharpness.
"""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.exponent import Exponent, as_exponent
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State, expand_rows
from boltzmix.planners.known import Held


@dataclass(frozen=True)
class Guidance:
    """How tasks act on the denoised estimate.

    Args:
        spread: v, the variance of the data in normalised coordinates.
        length: ℓ, the correlation length along time, in tokens; 0 for none.
        iterations: gradients of the tasks at each level.

    Raises:
        ValueError: numbers out of range.
    """

    spread: float = 0.25
    length: float = 2.0
    iterations: int = 3

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not 0 < self.spread < math.inf:
            raise ValueError(f"spread is a positive variance, got {self.spread!r}")
        if not 0 <= self.length < math.inf:
            raise ValueError(f"length is a number of tokens >= 0, got {self.length!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"iterations is an int >= 1, got {self.iterations!r}")


class OutOfTime(Exception):
    """The deadline of a run has passed.

    Attributes:
        estimate: the last denoised state ``(N, F)``.
        forwards: evaluations of all rows so far.
    """

    def __init__(self, estimate: Tensor, forwards: int) -> None:
        """Carry what was found so far."""
        super().__init__("the deadline has passed")
        self.estimate, self.forwards = estimate, forwards


class Guided(Term):
    r"""A prior over free coordinates times tasks at its denoised estimate; see the module's page.

    Args:
        prior: over the free coordinates ``(F,)``, with a score.
        tasks: (static term over the whole event, weight) pairs; weights are numbers or functions of σ.
        held: what is known, which says where the free coordinates are.
        guidance: the numbers of the approximation.

    Attributes:
        deadline: when to stop, on the clock of ``time.perf_counter``; None for never.
        last: the denoised states of the last evaluation.

    Raises:
        OutOfTime: by an evaluation after the deadline, from the second one on.
    """

    path = "annealed"
    path_reason = "its tasks act on the denoised estimate"
    has_energy = False

    def __init__(
        self,
        prior: Term,
        tasks: Sequence[tuple[Term, Any]],
        held: Held,
        guidance: Guidance | None = None,
    ) -> None:
        """Hold the parts and lay out the correlation along time."""
        super().__init__()
        self.prior, self.held = prior, held
        self.tasks = nn.ModuleList([term for term, _ in tasks])
        self.weights: list[Exponent] = [as_exponent(weight) for _, weight in tasks]
        self.guidance = Guidance() if guidance is None else guidance
        self.deadline: float | None = None
        self.variables, self.sigma_range = prior.variables, prior.sigma_range
        if not tasks:
            self.path, self.path_reason = prior.path, prior.path_reason
        self.root = correlation_root(held.mask.shape[0], self.guidance.length)
        self.last: Tensor | None = None
        self.forwards = self.gradients = 0

    def _score(self, x: Any, sigma: Any) -> Tensor:
        if self.deadline is not None and self.last is not None and time.perf_counter() > self.deadline:
            raise OutOfTime(self.last, self.forwards)
        self.forwards += 1
        score = self.prior._score(x, sigma)
        assert isinstance(score, Tensor)
        if sigma is None:
            return score - self.held.split(self._slope(self.held.join(x), None)) if len(self.tasks) else score
        level = expand_rows(sigma, x)
        estimate = x + level**2 * score
        if not len(self.tasks):
            self.last = estimate
            return score
        pulled = self.proximal(estimate, sigma)
        self.last = pulled
        return (pulled - x) / level**2

    def proximal(self, estimate: Tensor, sigma: Tensor, variance: Tensor | None = None) -> Tensor:
        """The mode y of the tasks times N(estimate, V(σ)), free coordinates ``(N, F)``."""
        if variance is None:
            variance = self.guidance.spread * sigma**2 / (self.guidance.spread + sigma**2)
        size = variance.sqrt()
        size = size.reshape(-1, 1, 1) if size.ndim else size
        centre = self.held.join(estimate)
        shape = centre.shape
        centre = centre.reshape(shape[0], shape[1], -1)
        scale = size * (~self.held.mask).reshape(1, shape[1], -1)
        root = self.root.to(estimate)
        # u whitens the step: y = centre + scale · (root @ u), and the objective is |u|²/2 + E(y)
        u = torch.zeros_like(centre)
        y, old_u, old_r, step = centre, u, u, None
        for _ in range(self.guidance.iterations):
            slope = self._slope(y.reshape(shape), sigma).reshape(centre.shape)
            residual = u + root.mT @ (scale * slope)
            if not bool((residual != 0).any()):
                break  # no task has anything to say here
            step = _step(step, u - old_u, residual - old_r, residual)
            old_u, old_r = u, residual
            u = u - step * residual
            y = centre + scale * (root @ u)
        return self.held.split(y.reshape(shape))

    def _slope(self, event: Tensor, sigma: Tensor | None) -> Tensor:
        """∇ Σ w E at a clean event, one backward for all tasks."""
        self.gradients += 1
        with torch.enable_grad():
            leaf = event.detach().requires_grad_()
            total: Any = 0.0
            for term, weight in zip(self.tasks, self.weights, strict=True):
                assert isinstance(term, Term)
                total = total + (weight.value(sigma) * term._energy(leaf, None)).sum()
            if not isinstance(total, Tensor) or not total.requires_grad:
                return torch.zeros_like(event)
            (slope,) = torch.autograd.grad(total, leaf, allow_unused=True)
        return torch.zeros_like(event) if slope is None else slope

    def _denoise(self, x: State, sigma: Any) -> State:
        assert isinstance(x, Tensor)
        return x + expand_rows(sigma, x) ** 2 * self._score(x, sigma)

    def _coarse(self, sigma: Tensor) -> Gaussian | GaussianMixture:
        return self.prior._coarse(sigma)

    def _strength(self, sigma: Tensor) -> float | Tensor:
        return self.prior._strength(sigma)

    def _rows(self) -> int:
        return self.prior._rows()

    def name(self) -> str:
        """The prior's name and those of the tasks."""
        return " · ".join([self.prior.name(), *(t.name() for t in self.tasks)])  # pyright: ignore[reportCallIssue]


@functools.lru_cache(maxsize=32)
def correlation_root(tokens: int, length: float) -> Tensor:
    """A root L of the correlation along time, K = L Lᵀ, ``(H, H)`` in float64; K has a unit diagonal."""
    if length <= 0:
        return torch.eye(tokens, dtype=torch.float64)
    lag = torch.arange(tokens, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((lag[:, None] - lag) / length) ** 2)
    values, vectors = torch.linalg.eigh(kernel)
    return vectors * values.clamp(min=0.0).sqrt()


def _step(last: Tensor | None, moved: Tensor, turned: Tensor, residual: Tensor) -> Tensor:
    """A step size for each row: Barzilai and Borwein's, no longer than a few of its units."""
    norm = residual.flatten(1).norm(dim=1).clamp(min=1e-12)
    first = (2.0 / norm).clamp(max=1.0)
    if last is None:
        return first.reshape(-1, 1, 1)
    curvature = (moved * turned).flatten(1).sum(1)
    size = (moved * moved).flatten(1).sum(1)
    long = size / curvature.clamp(min=1e-12)
    good = (curvature > 1e-12 * size) & (size > 0)
    found = torch.where(good, long, 1.5 * last.reshape(-1)).clamp(max=1.0)
    return torch.minimum(found, 3.0 / norm).reshape(-1, 1, 1)
