r"""Energy models: a density written down directly, up to its integral.

.. math:: E(x \mid y) = f_\theta\!\left(\tfrac{x - m}{\bar s}, y\right) - \log q(x \mid y) + c_y, \qquad
          p(x \mid y) \propto e^{-E(x \mid y)}

f is the network, q a *base*: a normalised density, by default a Gaussian fitted to the data, which makes p normalisable
whatever the network does (SiLU networks grow linearly, the Gaussian's energy quadratically). c is the constant: an
objective that learns it (noise-contrastive estimation) makes E = −log p up to the fit, and the model calibrated;
for the others it stays 0 and log Z is what SMC or AIS finds. Before training f = 0, so p = q and log Z = 0.

Nothing about the shape of p is assumed: rings and disconnected supports cost no more than a bump. The price is that
the likelihood is not available in training; :mod:`boltzmix.models.objectives` holds what stands in for it.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated, Term, score_from_energy
from boltzmix.compose.variable import Variable
from boltzmix.models.gaussian_base import GaussianBase
from boltzmix.models.labels import Batch, Labelled, stacked_labels, tile
from boltzmix.models.nets.embedding import NULL
from boltzmix.models.objectives import Objective, make_objective


class EnergyCore(nn.Module):
    """Network, base and constant: shared, not copied, by every conditional view of one model.

    Args:
        net: called ``net(x, label)``; returns ``(N, 1)`` or ``(N,)``.
        base: a normalised term, or None.
        event_shape: shape of one draw.
        rows: number of constants, 1 or ``num_classes + 1`` (the last belongs to the unconditional model).
        learn_constant: whether they are parameters.
    """

    shift: Tensor
    width: Tensor
    log_z: Tensor

    def __init__(
        self, net: nn.Module, base: Term | None, event_shape: tuple[int, ...], rows: int, learn_constant: bool
    ) -> None:
        """Hold the network in the units of the data, which are unknown until the first batch."""
        super().__init__()
        self.net, self.base = net, base
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.register_buffer("shift", torch.zeros(event_shape, **options))
        self.register_buffer("width", torch.ones((), **options))
        constant = torch.zeros(rows, **options)
        if learn_constant:
            self.log_z = nn.Parameter(constant)
        else:
            self.register_buffer("log_z", constant)

    def tilt(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """f, what the network adds to the energy of the base, ``(N,)``."""
        value = self.net((x - self.shift) / self.width, label)
        if value.shape not in ((x.shape[0], 1), (x.shape[0],)):
            raise ValueError(
                f"the network of an energy returns (N, 1) or (N,), got {tuple(value.shape)} for N = {x.shape[0]}; "
                "use EnergyMLP or EnergyConv, or build yours with one output"
            )
        return value.reshape(-1)

    def base_energy(self, x: Tensor, label: Tensor | None = None) -> Tensor | float:
        """−log q, ``(N,)``; 0 without a base."""
        if self.base is None:
            return 0.0
        if isinstance(self.base, GaussianBase):
            return self.base.row_energy(x, label)
        return self.base._energy(x, None)

    def constant(self, label: Tensor | None) -> Tensor:
        """c of each row, ``(N,)`` or ``(1,)``."""
        if label is None or len(self.log_z) == 1:
            return self.log_z[-1:]
        return self.log_z[torch.where(label < 0, len(self.log_z) - 1, label)]

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """E, ``(N,)``."""
        return self.tilt(x, label) + self.base_energy(x, label) + self.constant(label)


class EnergyModel(Labelled):
    r"""An energy-based model (see the module's page for the equation).

    Args:
        net: ``net(x, label)``; ``label`` is None or long ``(N,)``, −1 meaning unconditional. See
            :class:`~boltzmix.models.nets.EnergyMLP` and :class:`~boltzmix.models.nets.EnergyConv`.
        event_shape: shape of one draw.
        objective: how :meth:`loss` trains it: ``"pcd"`` (persistent contrastive divergence, the default), ``"cd"``,
            ``"nce"``, ``"score"`` (sliced score matching), ``"denoising"``, an instance of a class of
            :mod:`boltzmix.models.objectives`, or ``{"class": …, "arguments": {…}}``. None for a model that is not
            trained here.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        base: ``"gaussian"``, a normalised term over x, or None for E = f alone (then normalising is up to you).
        loc, scale: centre and standard deviations of the data, numbers or ``event_shape``, in the user's units; None
            takes them from the first batch.
        dropout: probability with which a label is hidden in training, so that the same network is unconditional.
        calibrated: whether the energy's constant means −log p although the objective did not learn it.

    Raises:
        ValueError: shapes and numbers that do not fit; data without variance along a coordinate.
        TypeError: a base that is not normalised, or over something else.

    Sources: Y. LeCun et al. (2006), A tutorial on energy-based learning. Y. Du and I. Mordatch (2019), Implicit
    generation and modeling with energy-based models.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import EnergyMLP
        >>> p = EnergyModel(EnergyMLP(2, hidden=8, num_classes=3), (2,), num_classes=3)
        >>> energy, score = p.given(label=1).energy_and_score(torch.zeros(5, 2))
        >>> energy.shape, score.shape
        (torch.Size([5]), torch.Size([5, 2]))
    """

    path = "static"
    core: EnergyCore
    prepared: Tensor

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        objective: "str | Mapping[str, Any] | Objective | None" = "pcd",
        num_classes: int | None = None,
        base: Term | str | None = "gaussian",
        loc: float | Sequence[float] | Tensor | None = None,
        scale: float | Sequence[float] | Tensor | None = None,
        dropout: float = 0.1,
        calibrated: bool = False,
    ) -> None:
        """Check the arguments and wrap the network."""
        super().__init__()
        shape = tuple(int(s) for s in event_shape)
        self.variables = Variable(shape)
        self._take_labels(num_classes, dropout, net)
        if isinstance(base, str):
            if base != "gaussian":
                raise ValueError(f"base is 'gaussian', a normalised term or None, got {base!r}")
            base = GaussianBase(shape, loc=loc, scale=scale)
        elif base is not None:
            self._check_base(base, shape)
        made = make_objective(objective)
        learned = made is not None and made.learns_constant
        rows = 1 if num_classes is None else num_classes + 1
        self.core = EnergyCore(net, base, shape, rows, learned)
        like = self.core.shift
        if isinstance(base, GaussianBase):
            base.to(like)
        self._units_given = (loc is not None, scale is not None)
        self._take_units(loc, scale)
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool, device=like.device))
        self.calibrated = bool(calibrated) or learned
        self.objective = made
        if made is not None:
            made.attach(self)
            made.to(like)

    # ------------------------------------------------------------- evaluation

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self._match(x)
        return self.core(x, self._label_rows(x.shape[0], x.device))

    def _group(self) -> Hashable:
        return (type(self).__name__, id(self.core))

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        """Energies and scores of k labels from one forward and one backward over k · N rows."""
        self._match(x)
        views: Any = terms
        k, n = len(views), x.shape[0]
        label = stacked_labels([view._label_rows(n, x.device) for view in views], n, x.device)
        tall = tile(x, k)
        if not score:
            return [(e, None) for e in self.core(tall, label).chunk(k)]
        keep = torch.is_grad_enabled() and self._needs_graph(x)
        with torch.enable_grad():
            leaf = tall if keep and tall.requires_grad else tall.detach().requires_grad_()
            energies = self.core(leaf, label)
            scores = score_from_energy(energies, leaf, keep, self)
        assert isinstance(scores, Tensor)
        energies = energies if keep else energies.detach()
        pairs = zip(energies.chunk(k), scores.chunk(k), strict=True)
        return [(e if energy else None, s) for e, s in pairs]

    def _needs_graph(self, x: Any) -> bool:
        return x.requires_grad or any(p.requires_grad for p in self.core.parameters())

    # --------------------------------------------------------------- training

    def prepare(self, batch: Batch, generator: torch.Generator) -> None:
        """Take the units of the data from a batch and fill what the objective keeps, once.

        A model that is prepared (or trained) already stays as it is; :meth:`loss` prepares one that is not.

        Args:
            batch: ``x`` or ``(x, label)``; the more rows, the better the fitted base.
            generator: where the chains start from it.
        """
        if bool(self.prepared):
            return
        x, label = self._training_batch(batch, generator)
        base, (loc, scale) = self.core.base, self._units_given
        with torch.no_grad():
            if isinstance(base, GaussianBase):
                base.fit_moments(x, label)
                mean, deviations = base.mean(None)[0].reshape(self.event_shape), base.deviations()
            else:
                mean, deviations = x.mean(0), x.std(0, correction=0)
            self._take_units(None if loc else mean, None if scale else deviations)
            if not bool(self.core.width > 0):
                raise ValueError(
                    f"all {len(x)} rows of the first batch are equal: there is no scale to take; give scale="
                )
            if self.objective is not None:
                self.objective.prepare(self, x, label, generator)
            self.prepared.fill_(True)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Training loss of a batch, ``x`` or ``(x, label)``; all randomness comes from ``generator``.

        Raises:
            TypeError: the model has no objective.
            NonFinite: chains or energies that left the finite numbers; the message names cause and remedy.
        """
        if self.objective is None:
            raise TypeError("this EnergyModel was built with objective=None; build it with one to train it")
        self.prepare(batch, generator)
        x, label = self._training_batch(batch, generator)
        self._match(x)
        return self.objective.loss(self, x, label, generator)

    def metrics(self) -> dict[str, float]:
        """What the objective measured in the last step."""
        return {} if self.objective is None else self.objective.metrics()

    def sample_base(self, n: int, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """n exact draws of the base, each with its label where the base has labels."""
        base = self.core.base
        if base is None:
            raise TypeError("this EnergyModel has no base to draw from")
        if isinstance(base, GaussianBase):
            return base.draw(n, label, generator)
        return base._sample(n, generator)  # pyright: ignore[reportReturnType]

    def start(self) -> Term:
        """The base of this model, or of this conditional view: a term for ``sample(model, n, init=model.start())``.

        Raises:
            TypeError: there is no base, or every row has a label of its own.
        """
        base = self.core.base
        if base is None or self.per_row:
            raise TypeError("no single base to start from: " + ("every row has its label" if base else "there is none"))
        if isinstance(base, GaussianBase) and base.num_classes is not None:
            return base.row(NULL if self.label is None else self.label)
        return base

    # ---------------------------------------------------------------- helpers

    def _check_base(self, base: object, shape: tuple[int, ...]) -> None:
        if not isinstance(base, Term) or not base.normalized or not isinstance(base.variables, Variable):
            what = base.name() if isinstance(base, Term) else type(base).__name__
            raise TypeError(f"base is a normalised term over one variable, such as a Gaussian or a flow; got {what}")
        if base.event_shape != shape:
            raise ValueError(f"the base is over {base.event_shape} and the model over {shape}")
        own = getattr(base, "num_classes", None)
        if isinstance(base, GaussianBase) and own not in (None, self.num_classes):
            raise ValueError(f"the base was built with num_classes={own}, the model with {self.num_classes}")

    def _take_units(self, loc: Any, scale: Any) -> None:
        """Centre and root mean square width, in which the network sees the data."""
        shift, width = self.core.shift, self.core.width
        if loc is not None:
            shift.copy_(torch.as_tensor(loc, dtype=shift.dtype, device=shift.device).expand(shift.shape))
        if scale is not None:
            value = torch.as_tensor(scale, dtype=shift.dtype, device=shift.device)
            if not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"scale holds positive finite standard deviations, got {value.flatten()[:4].tolist()}")
            width.copy_(value.square().mean().sqrt())

    def _spread(self) -> Tensor:
        """Variance of each flat coordinate ``(D,)``: the inverse mass of chains."""
        base = self.core.base
        if isinstance(base, GaussianBase):
            return base.deviations().detach().reshape(-1) ** 2
        return (self.core.width**2).expand(math.prod(self.event_shape))
