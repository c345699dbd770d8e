r"""Rewards as terms: :math:`p(x) \propto p_{\mathrm{ref}}(x)\, e^{r(x)/\beta}`.

Maximising :math:`E_q[r] - \beta\, KL(q \,\|\, p_{\mathrm{ref}})` over all densities q gives this tilted density, so
"tune a model towards a reward and stay close to it" is the product ``p_ref * Reward(r, ..., beta=β)``. The value of the
maximum is :math:`\beta \log E_{p_{\mathrm{ref}}} e^{r/\beta}`, and ``draw.log_z`` is that expectation's logarithm where
p_ref is normalised. Small β follows the reward, large β the reference.

Source: T. Korbak, E. Perez, C. Buckley (2022), RL with KL penalties is better viewed as Bayesian inference.
Preferences: R. A. Bradley, M. E. Terry (1952), Rank analysis of incomplete block designs; P. Christiano et al. (2017),
Deep reinforcement learning from human preferences.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable, check_state
from boltzmix.models.wrapped import Wrapped


class Reward(Term):
    r"""The factor :math:`e^{r(x)/\beta}`, static: :math:`E(x) = -r(x)/\beta`.

    Args:
        net: r, ``net(x) -> (N,)`` or ``(N, 1)``: a module or a function.
        event_shape: shape of one x.
        beta: temperature β > 0, in units of r.
        objective: what :meth:`loss` learns from. ``"regression"``: batches (x, r), mean squared error.
            ``"preferences"``: batches (x_better, x_worse), Bradley and Terry's
            :math:`-\log \mathrm{sigmoid}(r(x_{better}) - r(x_{worse}))`; preferences leave the constant of r free, so
            such a term is not calibrated, and log Z is not reported.
        support: of x, as in :class:`~boltzmix.compose.variable.Variable`: ``"integers(K)"`` for discrete x.

    Raises:
        ValueError: a β that is not positive, values of another shape.
        TypeError: values of another dtype than x.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian
        >>> tuned = Gaussian(torch.zeros(1), 1.0) * Reward(lambda x: x[:, 0], (1,), beta=0.5)   # N(2, 1)
        >>> tuned.score(torch.full((1, 1), 2.0)).tolist()
        [[0.0]]
    """

    def __init__(
        self,
        net: nn.Module | Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        beta: float = 1.0,
        *,
        objective: Literal["regression", "preferences"] = "regression",
        support: str = "real",
    ) -> None:
        """Check the numbers; the function is not called."""
        super().__init__()
        if isinstance(net, Term):
            raise TypeError(f"a reward is a function of x, got the term {net.name()}; write p * term ** (1 / beta)")
        if not callable(net):
            raise TypeError(f"a reward is a module or a function of x, got {type(net).__name__}")
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < math.inf:
            raise ValueError(f"beta is a finite number > 0, got {beta!r}; for a penalty write the reward with its sign")
        if objective not in ("regression", "preferences"):
            raise ValueError(f"objective is 'regression' or 'preferences', got {objective!r}")
        self.core = net if isinstance(net, nn.Module) else Wrapped(net)
        self.variables = Variable(tuple(int(s) for s in event_shape), support)
        self.has_score = not self.variables.discrete
        self.beta = float(beta)
        self.objective = objective
        self.calibrated = objective == "regression"

    def reward(self, x: Tensor) -> Tensor:
        """r(x), ``(N,)``."""
        check_state(x, self.variables, self.name())
        return self._reward(x)

    def key(self) -> Hashable:
        """The function and β."""
        core = self.core.fn if isinstance(self.core, Wrapped) else self.core
        return (type(self).__name__, id(core), self.variables, self.beta)

    def name(self) -> str:
        """The class and β."""
        return f"Reward(beta={self.beta:g})"

    def _reward(self, x: Tensor) -> Tensor:
        own = next((t for t in (*self.core.parameters(), *self.core.buffers()) if t.is_floating_point()), None)
        if own is not None and x.is_floating_point() and own.dtype != x.dtype:
            raise TypeError(
                f"{self.name()} holds {own.dtype} weights and got {x.dtype}; "
                f"convert x, or the model with .to({x.dtype})"
            )
        value = self.core(x)
        if not isinstance(value, Tensor) or tuple(value.shape) not in ((len(x),), (len(x), 1)):
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a reward returns one number per row, ({len(x)},) or ({len(x)}, 1), got {came}")
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            value = value.to(x.dtype)  # mixed precision: a reward is a number in the dtype of x
        if x.is_floating_point() and value.dtype != x.dtype:
            raise TypeError(f"{self.name()} returned {value.dtype} for x of {x.dtype}; convert one of them")
        if not value.is_floating_point():
            raise TypeError(f"{self.name()} returned {value.dtype}; a reward is a floating-point number")
        return value.reshape(-1)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._reward(x) / -self.beta

    def _rows(self) -> int:
        return 0 if isinstance(self.core, Wrapped) else 1

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean loss of a batch, (x, r) or (x_better, x_worse) by ``objective``; ``generator`` is not used.

        Raises:
            ValueError: a batch of another form than the objective's.
        """
        if isinstance(batch, Tensor) or len(batch) != 2:
            raise ValueError(f"a batch is a pair, {self._pair()}; got {type(batch).__name__}")
        x, other = batch
        check_state(x, self.variables, f"the batch of {self.name()}")
        if self.objective == "preferences":
            if other.shape != x.shape:
                raise ValueError(f"a batch is {self._pair()}, got {tuple(x.shape)} and {tuple(other.shape)}")
            better, worse = self._reward(torch.cat([x, other])).chunk(2)
            return -nn.functional.logsigmoid(better - worse).mean()
        if other.shape != x.shape[:1] or not other.is_floating_point():
            raise ValueError(f"a batch is {self._pair()}, got {other.dtype} rewards of shape {tuple(other.shape)}")
        return nn.functional.mse_loss(self._reward(x), other)

    def _pair(self) -> str:
        shape = f"(N, {', '.join(map(str, self.event_shape))})"
        if self.objective == "preferences":
            return f"(x_better, x_worse), each {shape}"
        return f"(x, r) with x {shape} and r floating point (N,)"
