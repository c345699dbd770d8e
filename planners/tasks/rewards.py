"""What a plan is good for: places to reach, rewards, and learned values of trajectories."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.callables import term
from boltzmix.compose.term import Term
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task, positive
from boltzmix.planners.tasks.limits import own_name


class Reach(Task):
    r"""Come near a position: a soft goal.

    At a token h, :math:`E = |p_h - g|^2 / 2 w^2`. With ``at="any"``, somewhere along the way: the mean of the density
    over all segments, each at its point nearest to g,
    :math:`E = -\log \frac1K \sum_k e^{-\min_u |p_k(u) - g|^2 / 2 w^2}`.

    The violation is the distance by which the goal is missed beyond the width: 0 within w metres of it.

    Args:
        position: g, ``(P,)`` in metres, or numbers by column name.
        width: w, a standard deviation in metres.
        at: a token, negative ones from the end, or ``"any"``.
        name: what results call it.

    Raises:
        ValueError: a width that is not positive, a position that does not fit the space, a token beyond the horizon.
    """

    def __init__(
        self, position: Any, width: float = 0.1, at: int | Literal["any"] = -1, name: str | None = None
    ) -> None:
        """Check width and token."""
        super().__init__(name)
        self.position, self.width, self.at = position, positive(width, "Reach's width"), at
        if at != "any" and (isinstance(at, bool) or not isinstance(at, int)):
            raise TypeError(f"Reach takes at=, a token or 'any', got {at!r}")

    def _fit(self, space: TrajectorySpace) -> None:
        space.values(self.position, self.name)
        if self.at != "any":
            space.token(self.at)  # pyright: ignore[reportArgumentType]

    def _squares(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        """Squared distances ``(N, K)`` at the token, or at the nearest point of each segment."""
        values = space.values(self.position, self.name)
        offset = tau[..., space.columns(list(values))] - tau.new_tensor(list(values.values()))
        if self.at != "any":
            return offset[:, space.token(self.at)].square().sum(-1)[:, None]  # pyright: ignore[reportArgumentType]
        if space.horizon == 1:
            return offset.square().sum(-1)
        start, along = offset[:, :-1], offset[:, 1:] - offset[:, :-1]
        with torch.no_grad():  # the place of a minimum does not enter its derivative
            length = along.square().sum(-1).clamp(min=torch.finfo(tau.dtype).tiny)
            place = (-(start * along).sum(-1) / length).clamp(0.0, 1.0)
        return (start + place[..., None] * along).square().sum(-1)

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        quadratic = self._squares(tau, space) / (2 * self.width**2)
        return math.log(quadratic.shape[1]) - (-quadratic).logsumexp(1)

    def _violation(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return (self._squares(tau, space).amin(1).sqrt() - self.width).clamp(min=0.0)


class Reward(Task):
    r"""A reward of whole trajectories, :math:`E = -r(\tau)`: plans of more reward are more likely by its exponential.

    Args:
        fn: physical trajectories ``(N, H, D)`` to ``(N,)``; scale it with ``Reward(fn) ** w``.
        name: what results call it; the function's own name if it has one.

    Example:
        >>> space = TrajectorySpace(4, ("x", "y"))
        >>> Reward(lambda tau: tau[..., 0].sum(1)).energy(torch.ones(2, 4, 2), space).tolist()
        [-4.0, -4.0]
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        """Hold the function."""
        if not callable(fn):
            raise TypeError(f"Reward takes a function of trajectories, got {type(fn).__name__}")
        super().__init__(own_name(fn) if name is None else name)
        self.fn = fn

    def modules(self) -> tuple[nn.Module, ...]:
        """The function, where it is a module."""
        return (self.fn,) if isinstance(self.fn, nn.Module) else ()

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        return -self._one_each(self.fn(tau), tau, "reward")


class Value(Task):
    r"""A learned value of trajectories in the sampler's coordinates, :math:`E = -V(x)` or :math:`-V(x; \sigma)`.

    A value that was trained on noisy trajectories takes the noise level as its second argument; its factor is then
    annealed rather than static. Results report it at the data end.

    Args:
        value: a function or module of normalised trajectories, ``value(x) -> (N,)`` or ``value(x, sigma) -> (N,)``; or
            a term over the space's trajectories, whose energy is −V.
        noised: whether it takes σ; None asks its signature.
        name: what results call it.

    Source: M. Janner, Y. Du, J. Tenenbaum, S. Levine (2022), Planning with diffusion for flexible behavior synthesis.
    """

    def __init__(
        self, value: Callable[..., Tensor] | Term, *, noised: bool | None = None, name: str | None = None
    ) -> None:
        """Hold the value."""
        super().__init__(name)
        if not callable(value):
            raise TypeError(f"Value takes a function, a module or a term, got {type(value).__name__}")
        self.value = value
        self.noised = _takes_sigma(value) if noised is None and not isinstance(value, Term) else bool(noised)

    def modules(self) -> tuple[nn.Module, ...]:
        """The network, where it is one."""
        return (self.value,) if isinstance(self.value, nn.Module) else ()

    def _term(self, space: TrajectorySpace) -> Term:
        if isinstance(self.value, Term):
            if self.value.event_shape != space.shape:
                raise ValueError(
                    f"{self.name}: the value is over {self.value.event_shape} and the space is {space.shape}"
                )
            return self.value
        path = "annealed" if self.noised else "static"
        return term(self.value, kind="log_prob", event_shape=space.shape, path=path, name=self.name)

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        # plans are judged in float64, and a network answers in its own numbers
        own = (t for net in self.modules() for t in (*net.parameters(), *net.buffers()) if t.is_floating_point())
        x = space.normalise(tau)
        x = x.to(next(own, x).dtype)
        if isinstance(self.value, Term):
            return self.value.energy(x).to(tau)
        return -self._one_each(self.value(x, x.new_zeros(())) if self.noised else self.value(x), tau, "value").to(tau)


def _takes_sigma(value: Callable[..., Tensor]) -> bool:
    """Whether a function needs two positional arguments."""
    called = value.forward if isinstance(value, nn.Module) else value
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in places and p.default is inspect.Parameter.empty for p in parameters) >= 2
