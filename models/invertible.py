r"""What flows share: a density by a change of variables, in the user's units, class labels, maximum likelihood.

.. math:: \log p(x \mid c) = \log N(z; 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad
          z = f(x \mid c)

with :math:`f = f_\theta \circ \mathrm{units}`. Draws are exact: :math:`x = f^{-1}(z)`, :math:`z \sim N(0, I)`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.term import Evaluated, Term, score_from_energy
from boltzmix.compose.variable import Variable
from boltzmix.models.labels import Batch, Labelled, stacked_labels, tile
from boltzmix.models.nets.units import Units
from boltzmix.models.normal import log_standard_normal


class Map(nn.Module):
    """An invertible map of coordinates u to latent z, and its units: what a flow learns.

    Args:
        units: from x to u.
    """

    prepared: Tensor

    def __init__(self, units: Units) -> None:
        """Not prepared yet."""
        super().__init__()
        self.units = units
        self.register_buffer("prepared", torch.tensor(False))

    def forward(self, u: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(N, *event)`` to z, ``(N, D)``, and ``log|det ∂z/∂u|``, ``(N,)``."""
        raise NotImplementedError

    def inverse(self, z: Tensor, label: Tensor | None) -> Tensor:
        """``(N, D)`` to u, ``(N, *event)``."""
        raise NotImplementedError

    def initialise(self, u: Tensor, label: Tensor | None) -> None:
        """Initialisation by data, for layers that have one."""


class Invertible(Labelled):
    """A normalised term over an invertible map; base of Flow, Glow and ContinuousFlow.

    A subclass sets ``self.core``, a :class:`Map`, after :meth:`_declare`.
    """

    path = "static"
    normalized = True
    calibrated = True
    samplable = True
    core: Map

    def _declare(
        self, event_shape: Sequence[int], num_classes: int | None, dropout: float, *nets: nn.Module
    ) -> tuple[int, ...]:
        shape = tuple(int(s) for s in event_shape)
        if not shape:
            raise ValueError("a flow is over vectors or images, event_shape=(D,) or (C, H, W); got ()")
        self.variables = Variable(shape)
        self._take_labels(num_classes, dropout, *nets)
        return shape

    # ------------------------------------------------------------------ public

    def encode(self, x: Tensor) -> Tensor:
        """The latent z, ``(N, D)``, of data ``(N, *event)``.

        Raises:
            ValueError: another shape, or data where the density is zero.
        """
        self._check(x, None)
        self._match(x)
        u, _, inside = self.core.units(x)
        self._refuse_outside(inside)
        return self.core(u, self._label_rows(x.shape[0], x.device))[0]

    def decode(self, z: Tensor) -> Tensor:
        """The data ``(N, *event)`` of latents ``(N, D)``: the inverse of :meth:`encode`."""
        dim = math.prod(self.event_shape)
        if z.ndim != 2 or z.shape[1] != dim:
            raise ValueError(f"latents have shape (N, D) = (N, {dim}), got {tuple(z.shape)}")
        self._match(z)
        return self.core.units.inverse(self.core.inverse(z, self._label_rows(z.shape[0], z.device)))

    # ------------------------------------------------------------------- hooks

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self._match(x)
        return -self._log_density(x, self._label_rows(x.shape[0], x.device))

    def _log_density(self, x: Tensor, label: Tensor | None) -> Tensor:
        u, log_det, inside = self.core.units(x)
        z, gain = self.core(u, label)
        value = log_standard_normal(z) + gain + log_det
        return value if inside is None else torch.where(inside, value, -torch.inf)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        own = self._weights()
        z = torch.randn(n, math.prod(self.event_shape), generator=generator, dtype=own.dtype, device=own.device)
        with torch.no_grad():
            x = self.decode(z)
        if not bool(torch.isfinite(x).all()):
            raise NonFinite(
                f"{int((~torch.isfinite(x.flatten(1)).all(1)).sum())} of {n} draws of {self.name()} are not finite; "
                "its inverse overflows: train longer, with a lower lr or a tighter clip"
            )
        return x

    def _group(self) -> Hashable:
        return (type(self).__name__, id(self.core))

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        self._match(x)
        views: Any = terms
        k, n = len(views), x.shape[0]
        label = stacked_labels([view._label_rows(n, x.device) for view in views], n, x.device)
        if not score:
            return [(e, None) for e in (-self._log_density(tile(x, k), label)).chunk(k)]
        keep = torch.is_grad_enabled() and any(view._needs_graph(x) for view in views)
        with torch.enable_grad():
            tall = tile(x, k)
            tall = tall if keep and tall.requires_grad else tall.detach().requires_grad_()
            energies = -self._log_density(tall, label)
            scores: Any = score_from_energy(energies, tall, keep, self)
        energies = energies if keep else energies.detach()
        return [(e if energy else None, s) for e, s in zip(energies.chunk(k), scores.chunk(k), strict=True)]

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean −log p(x | c) of a batch ``x`` or ``(x, label)``, in nats for each coordinate."""
        x, label = self._data(batch, generator)
        return -self._log_density(x, label).mean() / math.prod(self.event_shape)

    @torch.no_grad()
    def prepare(self, batch: Batch, generator: torch.Generator) -> None:
        """Units and layers that are initialised by data, from a first batch; ``fit`` calls it before its first step.

        A model that was prepared before, so one that is trained further, stays as it is. Without it units are
        ``loc=0, scale=1`` where they were not given, and the model works too.
        """
        if bool(self.core.prepared):
            return
        x, label = self._data(batch, generator)
        self.core.units.measure(x)
        self.core.initialise(self.core.units(x)[0], label)
        self.core.prepared.fill_(True)

    def _data(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x, label = self._training_batch(batch, generator)
        self._match(x)
        if self.core.units.bounds is not None:
            self._refuse_outside(self.core.units(x)[2])
        return x, label

    def _refuse_outside(self, inside: Tensor | None) -> None:
        if inside is not None and not bool(inside.all()):
            raise ValueError(
                f"{int((~inside).sum())} of {len(inside)} rows lie outside bounds={self.core.units.bounds} and their "
                "margin, where the density is zero: pass bounds that hold the data"
            )
