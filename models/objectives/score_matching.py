r"""Score matching: fit s = −∇E to ∇ log p without knowing either integral (Hyvärinen, 2005).

By parts, :math:`\tfrac12 E_p\|s - \nabla\log p\|^2 = E_p[\operatorname{tr}\nabla s + \tfrac12\|s\|^2] + C` with C free
of s. All three forms below estimate the right-hand side, or that of the noised density; none sees the relative masses
of regions between which p vanishes, so calibrate, or train by another objective, where these matter.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from boltzmix.models.objectives.base import Objective

Score = Callable[[Tensor], Tensor]


def explicit_score_matching(score: Score, x: Tensor) -> Tensor:
    r""":math:`E[\operatorname{tr}\nabla s(x) + \tfrac12\|s(x)\|^2]` with the exact trace: one backward per coordinate.

    Args:
        score: ``(N, *event) -> (N, *event)``, rows independent of each other, differentiable in x.
        x: data ``(N, *event)``.

    Source: A. Hyvärinen (2005), Estimation of non-normalized statistical models by score matching.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> float(explicit_score_matching(lambda x: -x, x).detach())  # −2 + 5/2
        0.5
    """
    with torch.enable_grad():
        leaf = _leaf(x)
        value = score(leaf)
        flat = value.flatten(1)
        trace = torch.zeros_like(flat[:, 0])
        for d in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, d].sum(), leaf, create_graph=True)
            trace = trace + row.flatten(1)[:, d]
        return (trace + 0.5 * flat.square().sum(1)).mean()


def sliced_score_matching(
    score: Score,
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    projections: int = 1,
    variance_reduced: bool = True,
) -> Tensor:
    r"""Projections v with :math:`E[v v^\top] = I` in place of the trace: unbiased for the explicit form.

    .. math:: E\left[v^\top \nabla(v^\top s) + \tfrac12 \|s\|^2\right] \quad\text{(variance reduced)}, \qquad
              E\left[v^\top \nabla(v^\top s) + \tfrac12 (v^\top s)^2\right]

    Args:
        score: as for :func:`explicit_score_matching`.
        x: data ``(N, *event)``.
        generator: of the projections: signs (Rademacher), whose estimate of the trace has the least variance.
        projections: how many for each datum.
        variance_reduced: use ‖s‖², the expectation of (vᵀs)².

    Source: Y. Song, S. Garg, J. Shi, S. Ermon (2019), Sliced score matching: a scalable approach to density and score
    estimation.
    """
    if projections < 1:
        raise ValueError(f"projections is a positive int, got {projections}")
    with torch.enable_grad():
        leaf = _leaf(x)
        value = score(leaf)
        total = torch.zeros_like(value.flatten(1)[:, 0])
        for _ in range(projections):
            coin = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
            v = (2 * coin - 1).to(x.dtype)
            along = (v * value).flatten(1).sum(1)
            (row,) = torch.autograd.grad(along.sum(), leaf, create_graph=True)
            square = value.flatten(1).square().sum(1) if variance_reduced else along.square()
            total = total + (v * row).flatten(1).sum(1) + 0.5 * square
        return (total / projections).mean()


def denoising_score_matching(score: Score, x: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    r""":math:`\tfrac12 E\|s(x + \sigma\varepsilon) + \varepsilon/\sigma\|^2`: the explicit form of the noised density.

    Its minimum is the score of :math:`p * N(0, \sigma^2 I)`, not of p.

    Source: P. Vincent (2011), A connection between score matching and denoising autoencoders.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is a positive finite number, got {sigma}")
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return 0.5 * (score(x + sigma * noise) + noise / sigma).flatten(1).square().sum(1).mean()


class ScoreMatching(Objective):
    """Score matching as an objective.

    Args:
        kind: ``"sliced"`` (the default), ``"explicit"`` (D backward passes: small D), or ``"denoising"``.
        sigma: standard deviation of the noise that is added to the data; needed for ``"denoising"`` (there None is a
            tenth of the data's width), and for the others a remedy for data without a density; None adds none.
        projections: of the sliced form.
        variance_reduced: of the sliced form.
    """

    def __init__(
        self,
        kind: Literal["sliced", "explicit", "denoising"] = "sliced",
        *,
        sigma: float | None = None,
        projections: int = 1,
        variance_reduced: bool = True,
    ) -> None:
        """Check the numbers."""
        super().__init__()
        if kind not in ("sliced", "explicit", "denoising"):
            raise ValueError(f"kind is 'sliced', 'explicit' or 'denoising', got {kind!r}")
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(f"sigma is a positive finite number or None, got {sigma}")
        if isinstance(projections, bool) or not isinstance(projections, int) or projections < 1:
            raise ValueError(f"projections is a positive int, got {projections!r}")
        self.kind, self.sigma, self.projections, self.variance_reduced = kind, sigma, projections, variance_reduced

    def loss(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """The chosen form in the units of the data: times σ² (denoising) or the squared width (the others)."""

        def score(points: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = _leaf(points)
                (slope,) = torch.autograd.grad(model.core(leaf, label).sum(), leaf, create_graph=True)
            return -slope

        width = model.core.width
        if self.kind == "denoising":
            sigma = 0.1 * float(width) if self.sigma is None else self.sigma
            loss = sigma**2 * denoising_score_matching(score, x, sigma, generator)
        else:
            if self.sigma is not None:
                noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = x + self.sigma * noise
            if self.kind == "explicit":
                loss = explicit_score_matching(score, x)
            else:
                loss = sliced_score_matching(
                    score, x, generator, projections=self.projections, variance_reduced=self.variance_reduced
                )
            loss = width**2 * loss
        with torch.no_grad():
            self._measured = {"score_matching": loss.detach(), "energy_data": model.core(x, label).mean()}
        return loss


def _leaf(x: Tensor) -> Tensor:
    """x itself where it takes part in a graph, otherwise a leaf of its values."""
    return x if x.requires_grad else x.detach().requires_grad_()
