"""Normalising flows of the zuko library as static, normalised terms.

zuko turns off the argument validation of torch.distributions when it is imported; the checks here are our own.
Scores come from :func:`torch.autograd.grad`: some flows do not go through torch.func.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, Uniform

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.term import Evaluated, Normalized, Term, score_from_energy
from boltzmix.compose.variable import Variable
from boltzmix.models.adapters.network import fingerprint, network_dtype


class FlowTerm(Normalized):
    r"""A zuko flow, lazy or conditioned already, as :math:`p(x \mid c)`.

    :math:`E(x) = -\log p(z) - \log|\det \partial z/\partial x|` with :math:`z = f(x \mid c)`.

    Args:
        flow: a lazy flow (``zuko.flows.*``), a lazy mixture, or a zuko distribution with an empty batch shape.
            Parameters of a lazy flow stay learnable; those of a distribution object are constants here.
        context: the condition of a lazy flow, ``(C,)``.
        event_shape: shape of one draw, where it cannot be read from the flow.

    Several contexts of one flow are evaluated together: one pass of the transformation over (k, N) rows.

    Raises:
        TypeError: not a density of zuko's, x in another dtype than the flow, conditional flows without context.
        ValueError: a context that the flow does not take, or flows whose log-density is a random estimate.

    Example:
        >>> import zuko
        >>> p = from_zuko(zuko.flows.MAF(2, context=3, transforms=1)).given(context=torch.zeros(3))
        >>> p.log_prob(torch.zeros(5, 2)).shape, p.sample(4).shape
        (torch.Size([5]), torch.Size([4, 2]))
    """

    path = "static"

    def __init__(self, flow: Any, *, context: Tensor | None = None, event_shape: Sequence[int] | None = None) -> None:
        """Check the flow by evaluating it at one point."""
        super().__init__()
        self.flow = flow
        self._lazy = not isinstance(flow, Distribution)
        if any(getattr(module, "exact", True) is False for module in (flow.modules() if self._lazy else ())):
            raise ValueError(
                "this flow's log-density is a random estimate (exact=False): set exact = True on its transformation"
            )
        if context is not None:
            context = _vector(context)
        if isinstance(context, nn.Parameter):
            self.context = context
        else:
            self.register_buffer("context", context)
        self._awaiting = ""
        self.variables = Variable(self._shape(event_shape))
        self._try()
        self.conditions = frozenset({"context"} if self._awaiting else ())
        self.samplable = not self._awaiting and _known_base(self._distribution())

    # ------------------------------------------------------------------ hooks

    def _energy(self, x: Tensor, sigma: object) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._ready(x)
        return -self._distribution().log_prob(x)

    def _given(self, **condition: object) -> "FlowTerm":
        return FlowTerm(self.flow, context=condition["context"], event_shape=self.event_shape)  # pyright: ignore[reportArgumentType]

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            distribution = self._distribution()
            return invert(distribution.transform, draw_base(distribution.base, n, generator), self.name())

    def key(self) -> Hashable:
        """The flow and its context."""
        return ("zuko", id(self.flow), fingerprint(self.context))

    def _group(self) -> Hashable | None:
        return None if self.context is None else ("zuko", id(self.flow), tuple(self.context.shape))

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: object, energy: bool, score: bool
    ) -> list[Evaluated]:
        self._ready(x)
        contexts = torch.stack([term.context for term in terms])[:, None]  # pyright: ignore[reportCallIssue, reportArgumentType]
        k = len(terms)
        if not score:
            rows = x.expand(k, *x.shape)
            return [(e, None) for e in -self.flow(contexts).log_prob(rows)]
        keep = torch.is_grad_enabled() and any(term._needs_graph(x) for term in terms)
        with torch.enable_grad():
            rows = (x if keep else x.detach()).expand(k, *x.shape)
            rows = rows if rows.requires_grad else rows.detach().requires_grad_()
            energies = -self.flow(contexts).log_prob(rows)
            scores = score_from_energy(energies, rows, keep, self)
        energies = energies if keep else energies.detach()
        assert isinstance(scores, Tensor)
        return [(e if energy else None, s) for e, s in zip(energies, scores, strict=True)]

    def _needs_graph(self, x: Any) -> bool:
        return super()._needs_graph(x) or (self.context is not None and self.context.requires_grad)

    def _rows(self) -> int:
        return 1

    def name(self) -> str:
        """The flow's class."""
        return f"FlowTerm({type(self.flow).__name__})"

    # ---------------------------------------------------------------- helpers

    def _distribution(self) -> Any:
        return self.flow(self.context) if self._lazy else self.flow

    def _ready(self, x: Tensor) -> None:
        if self._awaiting:
            raise TypeError(f"{self.name()} is conditional: write p.given(context=tensor) first ({self._awaiting})")
        own = network_dtype(self.flow)
        if own is not None and own != x.dtype:
            raise TypeError(f"{self.name()} has {own} parameters and x is {x.dtype}; convert one of them")

    def _shape(self, given: Sequence[int] | None) -> tuple[int, ...]:
        """The flow's event shape, checked against the one given; lazy mixtures show it only with a context."""
        try:
            with torch.no_grad():
                based = self._lazy and hasattr(self.flow, "base")
                own = tuple((self.flow.base(None) if based else self._distribution()).event_shape)
        except Exception as error:
            if given is None:
                raise ValueError(
                    f"the event shape of {type(self.flow).__name__} shows only with a context: pass event_shape="
                ) from error
            return tuple(given)
        if given is not None and tuple(given) != own:
            raise ValueError(f"{self.name()} has event shape {own}, got event_shape={tuple(given)}")
        return own

    def _try(self) -> None:
        """Evaluate once: a lazy flow does not say whether it takes a context, nor of which size."""
        like = next((p for p in self.flow.parameters() if p.is_floating_point()), None) if self._lazy else None
        like = torch.zeros(()) if like is None else like
        if self.context is not None and (self.context.dtype, self.context.device) != (like.dtype, like.device):
            raise TypeError(
                f"{self.name()} is {like.dtype} on {like.device} and the context {self.context.dtype} on "
                f"{self.context.device}; convert one of them"
            )
        point = torch.zeros(1, *self.event_shape, dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad():
                value = self._distribution().log_prob(point)
        except Exception as error:
            if self._lazy and self.context is None:
                self._awaiting = f"without a context it raises {type(error).__name__}: {error}"
                return
            given = "" if self.context is None else f" for a context of shape {tuple(self.context.shape)}"
            raise ValueError(f"{self.name()} cannot be evaluated{given}: {error}") from error
        if value.shape != (1,):
            raise ValueError(
                f"{self.name()} gives one log-density per row, got shape {tuple(value.shape)} for one row of shape "
                f"{self.event_shape}; a distribution needs an empty batch shape, and an event shape that fits"
            )


def from_zuko(obj: Any, *, event_shape: Sequence[int] | None = None, context: Tensor | None = None) -> FlowTerm:
    """A zuko flow or distribution as a term; see :class:`FlowTerm`.

    Raises:
        MissingExtra: zuko is not installed.
        TypeError: an object of zuko's that is no density.
    """
    try:
        from zuko.lazy import LazyDistribution
    except ImportError as error:
        raise MissingExtra('zuko flows need the extra: pip install "boltzmix[flows]"') from error
    if not isinstance(obj, (LazyDistribution, Distribution)):
        raise TypeError(f"from_zuko takes a lazy flow (zuko.flows.*) or a distribution, got {type(obj).__name__}")
    if context is not None and isinstance(obj, Distribution):
        raise TypeError("the distribution is conditioned already; pass the lazy flow for another context")
    return FlowTerm(obj, context=context, event_shape=event_shape)


def invert(transform: Any, z: Tensor, owner: str) -> Tensor:
    """``x`` with ``transform(x) = z``, checked: numerical inverses return their bracket's end for what lies beyond.

    Raises:
        ValueError: rows that the inverse misses.
    """
    x = transform.inv(z)
    with torch.no_grad():
        missed = ~((transform(x) - z).abs() <= 1e-2 * (1 + z.abs())).flatten(1).all(1)
    if bool(missed.any()):
        raise ValueError(
            f"the numerical inverse of {owner} misses {int(missed.sum())} of {len(z)} draws, up to "
            f"|x| = {float(x[missed].abs().max()):.3g}: scale the data into its bracket, or sample by MCMC"
        )
    return x


def draw_base(base: Distribution, n: int, generator: torch.Generator | None) -> Tensor:
    """n draws of a flow's base from a generator; torch.distributions draw from the global one only."""
    while isinstance(base, Independent):
        base = base.base_dist
    shape = (n, *base.batch_shape, *base.event_shape)
    if isinstance(base, Normal):
        noise = torch.randn(shape, generator=generator, dtype=base.loc.dtype, device=base.loc.device)
        return base.loc + base.scale * noise
    assert isinstance(base, Uniform)
    noise = torch.rand(shape, generator=generator, dtype=base.low.dtype, device=base.low.device)
    return base.low + (base.high - base.low) * noise


def _known_base(distribution: Any) -> bool:
    base = getattr(distribution, "base", None)
    while isinstance(base, Independent):
        base = base.base_dist
    return hasattr(distribution, "transform") and isinstance(base, (Normal, Uniform))


def _vector(context: object) -> Tensor:
    if not isinstance(context, Tensor) or not context.is_floating_point():
        came = f"a {context.dtype} tensor" if isinstance(context, Tensor) else type(context).__name__
        raise TypeError(f"a flow's context is a floating-point tensor (C,), got {came}")
    if context.ndim == 2 and context.shape[0] == 1 and not isinstance(context, nn.Parameter):
        context = context[0]
    if context.ndim != 1:
        raise ValueError(
            f"a flow's context has shape (C,), got {tuple(context.shape)}; make one term per context: "
            "terms of one flow share a pass"
        )
    if not bool(torch.isfinite(context).all()):
        raise ValueError("a flow's context must be finite")
    return context
