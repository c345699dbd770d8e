r"""Returns of noised trajectories: value guidance, :math:`p(\tau) e^{J(\tau; \sigma)/\beta}`.

A network learns from pairs (τ, R) of trajectories and their returns, at every noise level:

.. math:: J(x; \sigma) = E[\,R \mid \tau + \sigma\varepsilon = x\,] \quad (\text{"mean"}), \qquad
          V(x; \sigma) = \beta \log E[\,e^{R/\beta} \mid \tau + \sigma\varepsilon = x\,] \quad (\text{"soft"}).

The first is Diffuser's value function, a least-squares regression. It is the tilted density's own potential at σ = 0
only: adding its gradient to the score of p(x; σ) follows no noised version of :math:`p(\tau) e^{R/\beta}`, since the
mean of an exponential is not the exponential of the mean. The second is exactly what is missing,

.. math:: p(x; \sigma)\, e^{V(x; \sigma)/\beta} = \int p(\tau)\, e^{R(\tau)/\beta}\, N(x; \tau, \sigma^2 I)\, d\tau,

so reverse diffusion with it is exact up to the fit. It is learned by :math:`E[e^{R/\beta - v} + v]`, whose minimiser in
v is :math:`\log E[e^{R/\beta} \mid x]`; returns much larger than β make that expectation a matter of a few
trajectories, and the fit poor.

Source: M. Janner, Y. Du, J. Tenenbaum, S. Levine (2022), Planning with diffusion for flexible behavior synthesis.
C. Lu, H. Chen, J. Chen, H. Su, C. Li, J. Zhu (2023), Contrastive energy prediction for exact energy-guided diffusion
sampling in offline reinforcement learning.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Sigma, Variable, check_state, expand_rows
from boltzmix.models.nets.mlp import MLP


class Returns(Term):
    r"""The factor :math:`e^{J(x; \sigma)/\beta}` (see the module's page).

    Args:
        event_shape: shape of one trajectory, ``(H, D)``, or of any other x.
        net: ``net(x / s, ln(σ)/4) -> (N,)`` or ``(N, 1)`` with :math:`s = \sqrt{\sigma^2 + \sigma_d^2}`; None builds an
            :class:`~boltzmix.models.nets.MLP` over the flat trajectory.
        beta: temperature β > 0, in units of the return.
        kind: ``"mean"`` or ``"soft"``.
        sigma_range: noise levels of training; ``sigma=None`` means the smallest.
        sigma_data: σ_d, the standard deviation of the data; it only scales the input.
        flat: whether the network takes vectors ``(N, H · D)`` rather than ``(N, H, D)``.
        hidden, depth: of the network that is built for you.

    Raises:
        ValueError: numbers out of range, a batch of another form, values of another shape.
        NonFinite: returns that are not finite.
        TypeError: x in another dtype than the network.

    Example:
        >>> import torch
        >>> value = Returns((8, 4), hidden=8, beta=0.5)
        >>> value.value(torch.zeros(5, 8, 4), 1.0).shape, value.score(torch.zeros(5, 8, 4), 1.0).shape
        (torch.Size([5]), torch.Size([5, 8, 4]))
    """

    path = "annealed"
    path_reason = "a value over noise levels is no convolution"
    centre: Tensor
    width: Tensor
    prepared: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        net: nn.Module | None = None,
        *,
        beta: float = 1.0,
        kind: Literal["mean", "soft"] = "mean",
        sigma_range: tuple[float, float] = (0.02, 10.0),
        sigma_data: float = 1.0,
        flat: bool = True,
        hidden: int = 64,
        depth: int = 2,
    ) -> None:
        """Check the numbers and take, or build, the network."""
        super().__init__()
        shape = tuple(int(s) for s in event_shape)
        self.variables = Variable(shape)
        for name, value in (("beta", beta), ("sigma_data", sigma_data)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} is a finite number > 0, got {value!r}")
        if kind not in ("mean", "soft"):
            raise ValueError(f"kind is 'mean' or 'soft', got {kind!r}")
        low, high = (float(level) for level in sigma_range)
        if not 0 < low < high < math.inf:
            raise ValueError(f"sigma_range is (low, high) with 0 < low < high < inf, got {tuple(sigma_range)}")
        if net is None and not flat:
            raise ValueError("the network that is built for you takes flat trajectories; pass net= with flat=False")
        self.beta, self.kind, self.sigma_data, self.flat = float(beta), kind, float(sigma_data), bool(flat)
        self.sigma_range = (low, high)
        self.net = MLP(math.prod(shape), hidden, depth, out=1) if net is None else net
        like = next((p for p in self.net.parameters() if p.is_floating_point()), torch.zeros(()))
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.register_buffer("centre", torch.zeros((), **options))
        self.register_buffer("width", torch.ones((), **options))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool, device=like.device))

    def value(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """J(x; σ), or V, in the units of the return, ``(N,)``."""
        check_state(x, self.variables, self.name())
        return self._value(x, None if sigma is None else self._check_level(sigma, x, x.shape[0]))  # pyright: ignore[reportArgumentType]

    def _value(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        own = self.centre
        if x.dtype != own.dtype:
            raise TypeError(
                f"{self.name()} holds {own.dtype} weights and got {x.dtype}; convert x, or the model with "
                f".to({x.dtype})"
            )
        level = torch.full((), self.sigma_range[0], dtype=x.dtype, device=x.device) if sigma is None else sigma
        level = level.expand(len(x))
        scaled = x / expand_rows((level**2 + self.sigma_data**2).sqrt(), x)
        out = self.net(scaled.flatten(1) if self.flat else scaled, level.log() / 4)
        if tuple(out.shape) not in ((len(x),), (len(x), 1)):
            raise ValueError(f"the network of a value returns ({len(x)},) or ({len(x)}, 1), got {tuple(out.shape)}")
        return self.centre + self.width * out.reshape(-1)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._value(x, sigma) / -self.beta

    def _strength(self, sigma: Tensor) -> float:
        return 0.0  # far away the value hardly moves with x

    def _coarse(self, sigma: Tensor) -> Any:
        raise TypeError(f"{self.name()} is flat at large sigma and has no coarse form; ask the trajectories' model")

    def _rows(self) -> int:
        return 1

    def key(self) -> Hashable:
        """The network and β."""
        return (type(self).__name__, id(self.net), self.beta)

    def name(self) -> str:
        """The class, the kind and β."""
        return f"Returns({self.kind}, beta={self.beta:g})"

    # ------------------------------------------------------------------- training

    def prepare(self, batch: Any, generator: torch.Generator) -> None:
        """Take the mean and the standard deviation of the returns from a batch, once."""
        if bool(self.prepared):
            return
        _, returns = self._batch(batch)
        with torch.no_grad():
            spread = returns.std(correction=0)
            if not bool(spread > 0):
                raise ValueError(f"all {len(returns)} returns of the first batch are equal: there is nothing to learn")
            self.centre.copy_(returns.mean())
            self.width.copy_(spread)
            self.prepared.fill_(True)

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean loss of a batch (x, R) of clean trajectories, each noised to a level of its own, uniform in ln σ.

        The squared error in units of the returns' variance, or :math:`e^{R/\\beta - v} + v`.
        """
        self.prepare(batch, generator)
        x, returns = self._batch(batch)
        low, high = (math.log(level) for level in self.sigma_range)
        share = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        sigma = (low + (high - low) * share).exp()
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        found = self._value(x + expand_rows(sigma, x) * noise, sigma)
        if self.kind == "mean":
            return ((found - returns) / self.width).square().mean()
        v = (found - self.centre) / self.beta
        return ((returns - self.centre) / self.beta - v).exp().mean() + v.mean()

    def _batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor) or len(batch) != 2:
            raise ValueError(f"a batch is a pair (x, R) of trajectories and returns, got {type(batch).__name__}")
        x, returns = batch
        check_state(x, self.variables, f"the batch of {self.name()}")
        if returns.shape != x.shape[:1] or returns.dtype != x.dtype:
            raise ValueError(
                f"returns are {x.dtype} of shape ({len(x)},), got {returns.dtype} of shape {tuple(returns.shape)}"
            )
        if not bool(torch.isfinite(returns).all()):
            raise NonFinite("the returns of a batch hold NaN or infinite values; remove those trajectories")
        return x, returns
