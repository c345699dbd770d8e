"""Normalising flows on vectors, trained by maximum likelihood; the transformations are those of the zuko library."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from boltzmix.compose.errors import MissingExtra
from boltzmix.models.invertible import Invertible, Map
from boltzmix.models.nets.embedding import LabelEmbedding
from boltzmix.models.nets.units import Units

KINDS = ("coupling", "spline-coupling", "autoregressive", "spline")


class Flow(Invertible):
    r"""A normalising flow, :math:`\log p(x|c) = \log N(f(x|c); 0, I) + \log|\det \partial f/\partial x|`.

    ======================  =====================================================  ==============  ================
    kind                    one transformation                                     passes, log p   passes, one draw
    ======================  =====================================================  ==============  ================
    ``"coupling"``          affine on one half given the other (RealNVP)           1               1
    ``"spline-coupling"``   rational-quadratic spline on one half given the other  1               1
    ``"autoregressive"``    affine on each coordinate given those before (MAF)     1               D
    ``"spline"``            spline on each coordinate given those before           1               D
    ======================  =====================================================  ==============  ================

    Images are taken as vectors, row after row. Energies are exact, differentiable twice (affine kinds are smooth where
    the networks are; a spline's log-density is continuous with kinks at its knots), and evaluated for k labels in one
    pass. Exact draws at a temperature T do not exist: sample ``flow ** (1 / T)``.

    Args:
        event_shape: shape of one draw; D is its product.
        kind: one of the above.
        transforms: number of transformations; autoregressive ones alternate in direction, masks of couplings are drawn
            at random when the flow is built (alternating for D = 2).
        hidden: widths of the hidden layers of each network.
        bins: of a spline, whose domain is [−5, 5] in the flow's units; what lies outside is not moved.
        residual: residual blocks in the networks of autoregressive kinds; all ``hidden`` are then equal.
        num_classes: number of labels that :meth:`given` takes; None for a flow without labels.
        width: size of the embedding of a label.
        dropout: probability with which a label is hidden in training, so that the same flow is unconditional.
        loc, scale: the flow's units, (x − loc) / scale; None for those of the first batch of ``fit``.
        bounds: (low, high) for data in an interval; see :class:`~boltzmix.models.nets.units.Units`.
        margin: share of the interval that keeps the logit of its ends finite.

    Raises:
        MissingExtra: zuko is not installed.
        ValueError: an unknown kind or numbers out of range.

    Source: L. Dinh, J. Sohl-Dickstein, S. Bengio (2017), Density estimation using Real NVP. G. Papamakarios, T.
    Pavlakou, I. Murray (2017), Masked autoregressive flow for density estimation. C. Durkan, A. Bekasov, I. Murray,
    G. Papamakarios (2019), Neural spline flows.

    Example:
        >>> import torch
        >>> flow = Flow((2,), kind="coupling", transforms=2, hidden=(8,), num_classes=3)
        >>> flow.given(label=1).log_prob(torch.zeros(5, 2)).shape, flow.sample(4).shape
        (torch.Size([5]), torch.Size([4, 2]))
    """

    core: "ZukoMap"

    def __init__(
        self,
        event_shape: Sequence[int],
        kind: str = "spline",
        *,
        transforms: int = 4,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        residual: bool = False,
        num_classes: int | None = None,
        width: int = 16,
        dropout: float = 0.1,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        margin: float = 0.05,
    ) -> None:
        """Check the arguments and build the flow."""
        super().__init__()
        shape = self._declare(event_shape, num_classes, dropout)
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
        numbers = {
            "transforms": transforms,
            "bins": bins,
            "width": width,
            **{f"hidden[{i}]": h for i, h in enumerate(hidden)},
        }
        for name, value in numbers.items():
            least = 2 if name == "bins" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is an int >= {least}, got {value!r}")
        if residual and kind not in ("autoregressive", "spline"):
            raise ValueError(f"residual=True is for the masked networks of autoregressive kinds, got kind={kind!r}")
        self.kind = kind
        embedding = None if num_classes is None else LabelEmbedding(num_classes, width)
        features, context = math.prod(shape), 0 if embedding is None else width
        options = {"residual": True} if residual else {}
        flow = _build(kind, features, context, transforms, bins, hidden_features=tuple(hidden), **options)
        self.core = ZukoMap(Units(shape, loc=loc, scale=scale, bounds=bounds, margin=margin), flow, embedding, shape)

    def name(self) -> str:
        """The kind, and the label when there is one."""
        return f"Flow({self.kind}" + (")" if self.label is None else f", label={self.label})")


class ZukoMap(Map):
    """A lazy zuko flow with a standard normal base, and the embedding of labels that is its context."""

    def __init__(self, units: Units, flow: nn.Module, embedding: LabelEmbedding | None, shape: tuple[int, ...]) -> None:
        """Keep the parts."""
        super().__init__(units)
        self.flow = flow
        self.embedding = embedding
        self.shape = shape

    def _transform(self, n: int, label: Tensor | None) -> Any:
        context = None if self.embedding is None else self.embedding(label).expand(n, -1)
        return self.flow.transform(context)  # pyright: ignore[reportCallIssue]

    def forward(self, u: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and the log-determinant."""
        return self._transform(u.shape[0], label).call_and_ladj(u.flatten(1))

    def inverse(self, z: Tensor, label: Tensor | None) -> Tensor:
        """u; refuses rows for which the inverse is off."""
        from boltzmix.models.adapters.zuko import invert

        return invert(self._transform(z.shape[0], label), z, "this flow").unflatten(1, self.shape)


def _build(kind: str, features: int, context: int, transforms: int, bins: int, **options: Any) -> nn.Module:
    try:
        from zuko.flows import MAF, NICE, NSF
        from zuko.transforms import MonotonicRQSTransform
    except ImportError as error:
        raise MissingExtra('Flow needs zuko: pip install "boltzmix[flows]"') from error
    # Smooth networks: what HMC and second derivatives want.
    shared: dict[str, Any] = {"transforms": transforms, "activation": nn.SiLU, **options}
    if kind == "autoregressive":
        return MAF(features, context, **shared)
    if kind == "spline":
        return NSF(features, context, bins=bins, **shared)
    if kind == "spline-coupling":
        shapes = [(bins,), (bins,), (bins - 1,)]
        shared |= {"univariate": partial(MonotonicRQSTransform, slope=1e-3), "shapes": shapes}
    return NICE(features, context, randmask=features > 2, **shared)
