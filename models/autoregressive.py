r"""Autoregressive models: an exact density as a product of one-dimensional conditionals.

.. math:: \log p(x \mid c) = \sum_{t=0}^{D-1} \log p\big(x_{o(t)} \,\big|\, x_{o(0)}, \dots, x_{o(t-1)}, c\big)

The order o is any permutation (:mod:`boltzmix.models.orders`); one forward of a causal network gives the parameters of
all D conditionals, which are categorical over K levels, or mixtures of logistics over levels or reals
(:mod:`boltzmix.models.conditionals`). Draws are ancestral: D forwards, or D steps of a network with a ``decoder``.

**Prefixes.** Given the first m values, :math:`p(x \mid x_{<m} = v)` is the product of the other factors where x agrees
with v, and 0 elsewhere. It is exact because the prefix's own density needs no integral: it is the product of the first
m factors.

**Sequences of several lengths.** With ``eos`` a sequence ends at the first such token; what follows is ``pad`` and
contributes exactly 0:

.. math:: \log p(x) = \sum_{t \le \ell} \log p(x_t \mid x_{<t}), \qquad x_\ell = \mathrm{eos},

and sequences that fill the event without an end have all their factors, so the probabilities of all lengths together
sum to one. Without ``eos``, the lengths are given and the sum runs over t < ℓ.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import MissingEnergy
from boltzmix.compose.term import Evaluated, Normalized, Term, score_from_energy
from boltzmix.compose.variable import Variable, integers
from boltzmix.models.conditionals import conditional_of
from boltzmix.models.labels import stacked_labels, tile
from boltzmix.models.nets.embedding import NULL
from boltzmix.models.ordered import Ordered
from boltzmix.models.orders import as_order
from boltzmix.models.prefixes import Prefixed


class Autoregressive(Prefixed, Normalized):
    r"""A density as a product of conditionals (see the module's page for the equation).

    Args:
        net: ``net(values, label)``. Sequence networks (``CausalTransformer``, ``WaveNet``) take values in the model's
            order, ``(N, T)``, and return ``(N, T, P)``, row t a function of the values before t; networks with
            ``layout = "image"`` (``PixelCNN``) take ``(N, C, H, W)`` and return ``(N, C, H, W, P)`` in raster order.
        event_shape: shape of one draw.
        levels: K: values are long, in 0 … K−1.
        continuous: values are real. Exactly one of ``levels`` and ``continuous`` is given.
        head: for levels, ``"categorical"`` (P = K logits) or ``"logistic"`` (P = 3·M, a mixture of M logistics in K
            bins, for levels with an order such as pixel values). For reals always a mixture of M logistics.
        order: ``"raster"``, ``"multiscale"`` or a permutation of 0 … D−1; see :mod:`boltzmix.models.orders`.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        dropout: probability with which a label is hidden in training.
        loc, scale: of reals: centre and spread of the data, so that the network sees (x − loc) / scale.
        interval: of reals: ends (low, high) to which every conditional is truncated; energy is +inf outside.
        eos: of sequences of levels: the token that ends one.
        pad: the token behind the end; by default ``eos`` itself. Another one has probability zero before the end. With
            ``pad`` and no ``eos`` the energy is −log p(x | its length), which is not normalised over all lengths.
        corruption: in training, the share of values that the network sees exchanged for those of other rows, so that
            small data sets are not memorised; at 0 the loss is the negative log-likelihood.

    ``given(label=…)`` and ``given(prefix=…)`` are conditional views, in any combination. A prefix holds the first m
    values in the model's order, ``(m,)``, or ``(N, m)`` with one for each of N draws (:meth:`prefix_of` takes them from
    an x). States of the view keep their full shape: its energy is +inf where x disagrees with the prefix, and its draws
    complete the prefix. For reals its density is over the other coordinates, and kernels must hold those of the prefix
    still: write ``view * view.clamp()``.

    Raises:
        ValueError: settings that contradict each other or the network.
        MissingEnergy: a score is asked of levels.

    Source: A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu (2016), Pixel recurrent neural networks; B. Uria et al.
    (2016), Neural autoregressive distribution estimation; T. Salimans et al. (2017), PixelCNN++.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import CausalTransformer
        >>> p = Autoregressive(CausalTransformer(3, 2, levels=2, hidden=8, depth=1), (3,), levels=2)
        >>> every = torch.cartesian_prod(*[torch.arange(2)] * 3)
        >>> round(p.log_prob(every).exp().sum().item(), 5)
        1.0
        >>> p.given(prefix=torch.tensor([1, 0])).sample(2)[:, :2].tolist()
        [[1, 0], [1, 0]]
    """

    path = "static"

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        levels: int | None = None,
        continuous: bool = False,
        head: Literal["categorical", "logistic"] | None = None,
        order: str | Sequence[int] | Tensor = "raster",
        num_classes: int | None = None,
        dropout: float = 0.1,
        loc: float = 0.0,
        scale: float = 1.0,
        interval: Sequence[float] | None = None,
        eos: int | None = None,
        pad: int | None = None,
        corruption: float = 0.0,
    ) -> None:
        """Check the settings and wrap the network."""
        super().__init__()
        shape = tuple(int(s) for s in event_shape)
        if (levels is None) != bool(continuous):
            raise ValueError(f"give levels=K or continuous=True, got levels={levels} and continuous={continuous}")
        if levels is None:
            self.variables = Variable(shape)
        else:
            self.variables = Variable(shape, integers(levels), torch.long)
        if not 0 <= corruption < 1:
            raise ValueError(f"corruption is a share in [0, 1), got {corruption}")
        self.levels, self.corruption = levels, float(corruption)
        self._take_labels(num_classes, dropout, net)
        self._take_prefix()
        self._take_end(eos, pad, shape)
        if head == "logistic" and self.pad is not None:
            raise ValueError("head='logistic' is for levels with an order; tokens with eos or pad are categorical")
        forbidden = self.pad if self.pad != self.eos else None
        self.conditional = conditional_of(levels, head, float(loc), float(scale), interval, forbidden)
        self.conditional.check(getattr(net, "outputs", None))
        built = getattr(net, "levels", levels)
        if built != levels:
            raise ValueError(f"the network was built with levels={built}, the model with levels={levels}")
        self.core = Ordered(net, as_order(order, shape), shape)
        if self.pad is not None and not self.core.from_the_left():
            raise ValueError("sequences with eos or pad are read from the left: leave out order=")
        self.has_score = self.levels is None
        self.normalized = self.calibrated = self.samplable = self.pad is None or self.eos is not None

    def _take_end(self, eos: int | None, pad: int | None, shape: tuple[int, ...]) -> None:
        self.eos, self.pad = eos, eos if pad is None else pad
        for name, token in {"eos": eos, "pad": pad}.items():
            if token is None:
                continue
            if self.levels is None or len(shape) != 1:
                raise ValueError(f"{name} is for sequences of levels: levels=K and event_shape=(L,), got {shape}")
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.levels:
                raise ValueError(f"{name} is a token in 0 … {self.levels - 1}, got {token!r}")

    def _group(self) -> Hashable:
        return (type(self).__name__, id(self.core))

    # ------------------------------------------------------------- evaluation

    def _require_score(self, what: str) -> None:
        if self.levels is not None:
            raise MissingEnergy(
                f"{what}: {self.name()} is over {self.levels} levels and discrete variables have no score; use "
                "energy() or log_prob(), draw with sample(n, generator), or build it with continuous=True"
            )
        super()._require_score(what)

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Any]:
        self._require_score("energy_and_score()")
        return super()._energy_and_score(x, sigma)

    def _check_values(self, values: Tensor) -> None:
        if self.levels is not None and values.numel():
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self.levels:
                raise ValueError(f"{self.name()} has levels 0 … {self.levels - 1}, got values from {low} to {high}")

    def _counted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which factors of ``(N, T)`` values in order count, and which rows are possible at all."""
        if self.pad is None:
            return torch.ones_like(values, dtype=torch.bool), torch.ones_like(values[:, 0], dtype=torch.bool)
        if self.eos is None:
            counted = (values == self.pad).cumsum(1) == 0
        else:
            ends = values == self.eos
            counted = ends.cumsum(1) - ends.long() == 0  # the end itself counts
        fits = torch.where(counted, (values != self.pad) | (values == self.eos), values == self.pad)
        return counted, fits.all(1)

    def _outputs(self, values: Tensor, label: Tensor | None) -> Tensor:
        """Parameters of the conditionals, ``(N, T, P)``."""
        return self.core(self.conditional.inputs(values), label)

    def _factors(self, values: Tensor, label: Tensor | None) -> Tensor:
        """Log-probabilities ``(N, D)`` of all values in order: one forward."""
        return self.conditional.log_prob(self._outputs(values, label), values)

    def _total(self, factors: Tensor, values: Tensor) -> Tensor:
        """Energy ``(N,)`` of this view from all the factors."""
        counted, possible = self._counted(values)
        rows = self._prefix_rows(len(values))
        if rows is not None:
            known = rows.shape[1]
            counted = counted & (torch.arange(values.shape[1], device=values.device) >= known)
            possible = possible & (values[:, :known] == rows).all(1)
        energy = -torch.where(counted, factors, 0.0).sum(1)
        return torch.where(possible, energy, torch.inf)

    def _energies(self, views: Sequence["Autoregressive"], tall: Tensor) -> list[Tensor]:
        """Energies of k views from one forward of k · N rows."""
        k = len(views)
        n = tall.shape[0] // k
        values = self.core.arrange(tall)
        self._check_values(values)
        labels = [view._label_rows(n, tall.device) for view in views]
        factors = self._factors(values, stacked_labels(labels, n, tall.device))
        parts = zip(views, factors.chunk(k), values.chunk(k), strict=True)
        return [view._total(part, own) for view, part, own in parts]

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self._match(x)
        return self._energies([self], x)[0] if len(x) else self._weights().new_zeros(0)

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        views: Any = terms
        self._match(x)
        if not len(x):
            return [(view._energy(x, sigma) if energy else None, x.clone() if score else None) for view in views]
        if not score:
            return [(e, None) for e in self._energies(views, tile(x, len(views)))]
        keep = torch.is_grad_enabled() and any(view._needs_graph(x) for view in views)
        with torch.enable_grad():
            # Rows of one tall leaf: the k gradients come out of one backward, already apart.
            tall = tile(x, len(views))
            tall = tall if keep and tall.requires_grad else tall.detach().requires_grad_()
            energies = self._energies(views, tall)
            scores = score_from_energy(torch.cat(energies), tall, keep, self)
        assert isinstance(scores, Tensor)
        energies = energies if keep else [e.detach() for e in energies]
        return [(e if energy else None, s) for e, s in zip(energies, scores.chunk(len(views)), strict=True)]

    def prefix_log_prob(self, prefix: Tensor) -> Tensor:
        r"""Log-density of the first m values, the others integrated out: ``(N, m)`` to ``(N,)``.

        :math:`\log p(x) = \log p(x_{<m}) + \log p(x \mid x_{<m})`, the second being ``given(prefix=…).log_prob(x)``.

        Raises:
            TypeError: the model has a prefix already.
        """
        if self.prefix is not None:
            raise TypeError("prefix_log_prob() is for a model without a prefix")
        if not isinstance(prefix, Tensor) or prefix.ndim != 2:
            raise ValueError("prefix_log_prob() takes a tensor (N, m): add a batch dimension with prefix[None]")
        values = self._check_prefix(prefix)
        missing = len(self.core.order) - values.shape[1]
        padded = torch.cat([prefix.to(values.device), values.new_zeros(len(values), missing)], 1)
        factors = self._factors(padded, self._label_rows(len(values), values.device))[:, : values.shape[1]]
        return torch.where(self._counted(values)[0], factors, 0.0).sum(1)

    def sequence_log_prob(self, x: Tensor, lengths: Tensor) -> Tensor:
        r"""Log-probability ``(N,)`` of sequences of several lengths; what stands behind an end plays no part.

        With ``eos``: :math:`\log p(x_{<\ell}, \text{end at } \ell)`, which sums to one over all lengths up to L;
        the end itself is implied. Without: :math:`\log p(x_{<\ell} \mid \ell)`, which sums or integrates to one for
        each ℓ.

        Args:
            x: ``(N, T)`` with any T; entries from ``lengths`` on are ignored, whatever they are.
            lengths: long ``(N,)``, numbers of values before the end, at most T and L.

        Raises:
            ValueError: lengths out of range, levels that are none, or ``eos`` or ``pad`` among the values.
        """
        size = len(self.core.order)
        if len(self.event_shape) != 1 or not self.core.from_the_left():
            raise TypeError("lengths are for sequences, event_shape=(L,) read from the left")
        if self.prefix is not None:
            raise TypeError("sequence_log_prob() is for a model without a prefix")
        wanted = self._weights().dtype if self.levels is None else torch.long
        if not isinstance(x, Tensor) or x.ndim != 2 or x.dtype != wanted:
            came = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x is a {wanted} tensor (N, T), got {came}")
        self._match(x)
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.long or lengths.shape != (len(x),):
            raise ValueError(f"lengths is a long tensor of shape ({len(x)},), one number for each row")
        most = min(size, x.shape[1])
        if len(x) and not (int(lengths.min()) >= 0 and int(lengths.max()) <= most):
            raise ValueError(f"lengths are in 0 … {most} for rows of {x.shape[1]} and events of {size}, got {lengths}")
        places = torch.arange(size, device=x.device)
        content = places < lengths[:, None]
        # Always of the event's own length, so that the same sequence costs the same arithmetic however it was padded.
        shown = x.new_zeros(len(x), size)
        shown[:, :most] = x[:, :most]
        values = torch.where(content, shown, self.pad or 0)
        self._check_values(values)
        if any(bool(((values == token) & content).any()) for token in (self.eos, self.pad) if token is not None):
            raise ValueError("eos or pad stands before the end; lengths count the values before the end")
        counted = content
        if self.eos is not None:
            counted = places <= lengths[:, None]
            values = torch.where(places == lengths[:, None], self.eos, values)
        factors = self._factors(values, self._label_rows(len(x), x.device))
        return torch.where(counted, factors, 0.0).sum(1)

    # ---------------------------------------------------------------- sampling

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        own, size = self._weights(), len(self.core.order)
        with torch.no_grad():
            label, rows = self._label_rows(n, own.device), self._prefix_rows(n)
            known = 0 if rows is None else rows.shape[1]
            dtype = own.dtype if self.levels is None else torch.long
            values = torch.full((n, size), self.pad or 0, dtype=dtype, device=own.device)
            if rows is not None:
                values[:, :known] = rows
            done = torch.zeros(n, dtype=torch.bool, device=own.device)
            advance = self._stepper(values, label)
            for t in range(size):
                parameters = advance(t)
                if t >= known:
                    assert parameters is not None
                    drawn = self.conditional.draw(parameters, generator)
                    values[:, t] = drawn if self.eos is None else torch.where(done, cast(int, self.pad), drawn)
                if self.eos is not None:
                    done = done | (values[:, t] == self.eos)
                    if bool(done.all()):
                        break  # the rest is padding already
            return self.core.restore(values)

    def _stepper(self, values: Tensor, label: Tensor | None) -> Callable[[int], Tensor]:
        """A function of t, called for 0, 1, …: parameters ``(N, P)`` of value t, from ``values`` as they then are."""
        net = self.core.net
        if not self.core.image and hasattr(net, "decoder"):
            follow = cast(Any, net).decoder(len(values), label)
            return lambda t: follow(self.conditional.inputs(values[:, t - 1]) if t else None)
        if self.core.image:
            return lambda t: self._outputs(values, label)[:, t]
        return lambda t: self._outputs(values[:, : t + 1], label)[:, t]

    # ---------------------------------------------------------------- training

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean negative log-likelihood in nats per variable, D in all, of ``x`` or ``(x, label)``."""
        x, label = self._training_batch(batch, generator)
        self._match(x)
        values = self.core.arrange(x)
        self._check_values(values)
        counted, possible = self._counted(values)
        if not bool(possible.all()):
            first = int((~possible).nonzero()[0])
            raise ValueError(
                f"row {first} of the batch has probability zero: behind eos={self.eos} only pad={self.pad} may stand"
            )
        seen = values
        if self.corruption:
            exchanged = torch.rand(values.shape, generator=generator, device=values.device) < self.corruption
            others = torch.randperm(len(values), generator=generator, device=values.device)
            seen = torch.where(exchanged, values[others], values)
        parameters = self._outputs(seen, label)
        factors = self.conditional.log_prob(parameters, values)
        return -torch.where(counted, factors, 0.0).sum(1).mean() / values.shape[1]

    def check_causal(self, seed: int = 0) -> None:
        """Refuse a network whose conditionals look ahead: then nothing here would be a density.

        Changes one value after another and asks for bit-identical parameters of it and of all before it: D + 1
        forwards.

        Raises:
            ValueError: a network that is not causal; the message names a pair of positions.
        """
        own, size = self._weights(), len(self.core.order)
        generator = torch.Generator(device=own.device).manual_seed(seed)
        if self.levels is None:
            first, second = torch.randn(2, size, generator=generator, dtype=own.dtype, device=own.device)
        else:
            first = torch.randint(self.levels, (size,), generator=generator, device=own.device)
            second = (first + 1) % self.levels
        self.core.check_causal(first, second, None if self.num_classes is None else NULL)
