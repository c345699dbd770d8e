r"""Continuous flows: neural ordinary differential equations, and the exact density of any learned velocity.

.. math:: \frac{du}{dt} = v(u, t \mid c), \qquad
          \log p(u_0) = \log N(u_1; 0, s^2 I) + \int_{t_0}^{t_1} \operatorname{tr} \frac{\partial v}{\partial u}\, dt

from data at :math:`t_0` to noise at :math:`t_1`, the direction of flow matching (velocity = noise − data). Draws run
back from :math:`t_1` to :math:`t_0`.

**The trace.** Exact, it costs D vector-Jacobian products for each evaluation of v. Hutchinson's estimate
:math:`\epsilon^\top (\partial v/\partial u)\, \epsilon` with random signs costs one. It is unbiased for log p, but
:math:`e^{\text{estimate}}` is not unbiased for p, and an energy that changes from call to call breaks every Metropolis
test. So training, which needs log p alone, draws fresh probes, while a *term* with ``trace="hutchinson"`` keeps fixed
ones: a function of x, with the right score for itself, that is not −log p and says so (``normalized`` and
``samplable`` are False).

**The solver.** With ``solver="rk4"`` (or heun, midpoint, euler) steps are fixed, rows do not depend on each other, and
the score is the gradient of the energy that is computed; the error, which :meth:`ContinuousFlow.discretisation_error`
measures, falls as steps^−4. Adaptive solvers (dopri5, dopri8, bosh3, adaptive_heun) choose steps for the whole batch:
an energy then depends on the other rows within the tolerances.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from boltzmix.models.divergence import divergence, random_signs, unit_vectors
from boltzmix.models.invertible import Invertible, Map
from boltzmix.models.labels import Batch
from boltzmix.models.nets.units import Units
from boltzmix.models.normal import log_standard_normal
from boltzmix.models.ode import Method, Parts, Solver

EXACT_UP_TO = 128


class ContinuousFlow(Invertible):
    r"""The density of data that an ordinary differential equation carries to a standard normal (see the module's page).

    Args:
        net: the velocity, ``net(u, t, label) -> (N, *event)`` with u ``(N, *event)``, t ``(N,)`` and ``label`` None or
            long with −1 for the null class: any network for a noise-conditioned family.
        event_shape: shape of one draw; D is its product.
        flatten: the network takes and gives vectors ``(N, D)``, whatever the event shape: an MLP over images.
        trace: ``"exact"``, ``"hutchinson"``, or ``"auto"``: exact up to D = 128.
        probes: number of fixed probes of ``"hutchinson"``.
        solver, steps, rtol, atol: method, number of fixed steps and tolerances of adaptive ones, of the
            :class:`~boltzmix.models.ode.Solver`.
        times: (t₀, t₁), of the data and of the noise.
        base_scale: s, standard deviation of the noise at t₁.
        kinetic: weight in the loss of the mean squared velocity along the path, which keeps paths straight and so easy
            to solve (Finlay et al., 2020).
        adjoint: gradients of the loss by the adjoint equation: memory independent of the number of steps, gradients
            exact within the solver's error alone. Scores never use it, since it has no second derivatives.
            Needs torchdiffeq.
        num_classes: number of labels that :meth:`given` takes; None for a model without labels.
        dropout: probability with which a label is hidden in training.
        loc, scale, bounds, margin: the flow's units; see :class:`~boltzmix.models.nets.units.Units`.

    Raises:
        MissingExtra: an adaptive solver or ``adjoint`` without torchdiffeq; raised by the first evaluation.
        ValueError: an unknown solver or trace, or numbers out of range.

    Source: R. T. Q. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud (2018), Neural ordinary differential equations. W.
    Grathwohl et al. (2019), FFJORD. C. Finlay et al. (2020), How to train your neural ODE.

    Example:
        >>> import torch
        >>> spread = lambda x, t: x * math.log(2)                     # u₁ = 2 u₀, so the data are N(0, 1/4)
        >>> p = ContinuousFlow.from_velocity(spread, (1,))
        >>> [round(float(p.log_prob(torch.zeros(1, 1))), 4), round(math.log(2) - 0.5 * math.log(2 * math.pi), 4)]
        [-0.2258, -0.2258]
    """

    core: "OdeMap"

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        flatten: bool = False,
        trace: str = "auto",
        probes: int = 1,
        solver: Method = "rk4",
        steps: int = 12,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        times: tuple[float, float] = (0.0, 1.0),
        base_scale: float = 1.0,
        kinetic: float = 0.0,
        adjoint: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.1,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        margin: float = 0.05,
    ) -> None:
        """Check the arguments and wrap the network."""
        super().__init__()
        shape = self._declare(event_shape, num_classes, dropout, net)
        if trace not in ("auto", "exact", "hutchinson"):
            raise ValueError(f"trace is 'auto', 'exact' or 'hutchinson', got {trace!r}")
        if not isinstance(probes, int) or isinstance(probes, bool) or probes < 1:
            raise ValueError(f"probes is a positive int, got {probes!r}")
        if not 0 < base_scale < math.inf:
            raise ValueError(f"base_scale is a number > 0, got {base_scale!r}")
        start, end = (float(t) for t in times)
        if not (math.isfinite(start) and math.isfinite(end) and start != end):
            raise ValueError(f"times are those of data and of noise, two different numbers; got {tuple(times)}")
        if not 0 <= kinetic < math.inf:
            raise ValueError(f"kinetic is a number >= 0, got {kinetic!r}")
        self.kinetic, self.adjoint = float(kinetic), bool(adjoint)
        exact = trace == "exact" or (trace == "auto" and math.prod(shape) <= EXACT_UP_TO)
        self.trace = "exact" if exact else "hutchinson"
        if not exact:
            self.normalized = self.calibrated = self.samplable = False
        units = Units(shape, loc=loc, scale=scale, bounds=bounds, margin=margin)
        way = Solver(solver, steps, float(rtol), float(atol))
        number = None if exact else probes
        self.core = OdeMap(units, net, shape, way, (start, end), number, float(base_scale), bool(flatten))

    @classmethod
    def from_velocity(
        cls,
        fn: Callable[..., Tensor],
        event_shape: Sequence[int],
        *,
        times: tuple[float, float] = (0.0, 1.0),
        base_scale: float = 1.0,
        **options: Any,
    ) -> Self:
        """The density that a velocity, learned by flow matching or otherwise, already implies.

        Args:
            fn: ``fn(x, t)``, or ``fn(x, t, label)`` where it takes three arguments, in the user's units: dx/dt at
                ``times[0]`` (data) … ``times[1]`` (noise). A module's parameters stay learnable. The
                probability-flow equation of a diffusion model is ``lambda x, t: -t * score(x, t)`` with
                ``times=(sigma_min, sigma_max), base_scale=sigma_max``.
            event_shape, times, base_scale, options: as for the class; ``loc=0, scale=1`` unless given.
        """
        units: dict[str, Any] = {"loc": 0.0, "scale": 1.0}
        return cls(Velocity(fn), event_shape, times=times, base_scale=base_scale, **{**units, **options})

    # ------------------------------------------------------------------ public

    def estimate_log_prob(self, x: Tensor, generator: torch.Generator, probes: int = 1) -> Tensor:
        """log p(x) of rows with fresh Hutchinson probes, ``(N,)``: unbiased for log p, not for p.

        Independent for each row and call; the spread falls as 1/√probes.
        """
        self._check(x, None)
        self._match(x)
        return self._estimate(x, self._label_rows(x.shape[0], x.device), self.core.draw(x, probes, generator))[0]

    def discretisation_error(self, x: Tensor) -> Tensor:
        """|log p(x)| with these steps minus that with twice as many (or tolerances a tenth), ``(N,)``."""
        self._check(x, None)
        self._match(x)
        label = self._label_rows(x.shape[0], x.device)
        with torch.no_grad():
            return (self._estimate(x, label)[0] - self._estimate(x, label, refine=True)[0]).abs()

    # ------------------------------------------------------------------- hooks

    def _log_density(self, x: Tensor, label: Tensor | None) -> Tensor:
        return self._estimate(x, label)[0]

    def _estimate(
        self,
        x: Tensor,
        label: Tensor | None,
        probes: Tensor | None = None,
        *,
        refine: bool = False,
        adjoint: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """log p with the given probes (None: the term's own way), and the mean squared velocity, ``(N,)`` each."""
        u, log_det, inside = self.core.units(x)
        z, gain, effort = self.core.solve(u, label, probes, refine=refine, adjoint=adjoint)
        value = log_standard_normal(z) + gain + log_det
        return (value if inside is None else torch.where(inside, value, -torch.inf)), effort

    def _rows(self) -> int:
        return self.core.solver.evaluations

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean −log p(x | c) in nats for each coordinate, plus the kinetic term; the trace by fresh probes if D > 4."""
        x, label = self._data(batch, generator)
        dim = math.prod(self.event_shape)
        probes = self.core.draw(x, 1, generator) if dim > 4 else unit_vectors(x)
        log_prob, effort = self._estimate(x, label, probes, adjoint=self.adjoint)
        return -log_prob.mean() / dim + self.kinetic * effort.mean()


class Velocity(nn.Module):
    """A function of (x, t) or (x, t, label) as a network; a module's parameters are registered."""

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        """Look at how many arguments it takes."""
        super().__init__()
        if not callable(fn):
            raise TypeError(f"a velocity is called as fn(x, t) or fn(x, t, label), got {type(fn).__name__}")
        self.fn = fn
        if hasattr(fn, "num_classes"):
            self.num_classes = fn.num_classes  # pyright: ignore[reportFunctionMemberAccess]
        call = fn.forward if isinstance(fn, nn.Module) else fn
        parameters = inspect.signature(call).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.labelled = len(positional) > 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """dx/dt, ``(N, *event)``."""
        if self.labelled:
            return self.fn(x, t, label)
        if label is not None:
            raise TypeError("this velocity is called as fn(x, t) and got labels; write it as fn(x, t, label)")
        return self.fn(x, t)


class OdeMap(Map):
    """The network, its units, and how its equation is solved."""

    probes: Tensor | None

    def __init__(
        self,
        units: Units,
        net: nn.Module,
        shape: tuple[int, ...],
        solver: Solver,
        times: tuple[float, float],
        probes: int | None,
        base_scale: float,
        flatten: bool,
    ) -> None:
        """Keep the parts; fixed probes are drawn from a generator of their own."""
        super().__init__(units)
        self.net, self.shape, self.solver, self.times = net, shape, solver, times
        self.base_scale, self.flatten = base_scale, flatten
        one = torch.zeros(1, *shape)
        fixed = None if probes is None else self.draw(one, probes, torch.Generator().manual_seed(0))
        self.register_buffer("probes", fixed)

    # ------------------------------------------------------------------ probes

    def draw(self, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
        """Fresh probes for every row, ``(K, N, *event)``, scaled so that their quadratic forms add up to the trace."""
        return random_signs((probes, *x.shape), x, generator) / math.sqrt(probes)

    # ---------------------------------------------------------------- solution

    def forward(self, u: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and the log-determinant."""
        return self.solve(u, label, None)[:2]

    def inverse(self, z: Tensor, label: Tensor | None) -> Tensor:
        """u, from noise to data."""
        state = z.unflatten(1, self.shape) * self.base_scale
        back = (self.times[1], self.times[0])
        (u,) = self.solver.solve(lambda s, t: (self._velocity(t, s[0], label),), (state,), *back)
        return u

    def solve(
        self, u: Tensor, label: Tensor | None, probes: Tensor | None, *, refine: bool = False, adjoint: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z ``(N, D)``, ``log|det ∂z/∂u|`` and the mean of v² over coordinates and a path of unit duration, ``(N,)``.

        Args:
            u: ``(N, *event)``.
            label: ``(N,)`` or None.
            probes: ``(K, N or 1, *event)``; None for the term's own way.
            refine: solve with twice the accuracy of this order.
            adjoint: gradients by the adjoint equation.
        """
        if probes is None:
            probes = unit_vectors(u) if self.probes is None else self.probes
        learns = u.requires_grad or any(p.requires_grad for p in self.parameters())
        keep = torch.is_grad_enabled() and learns

        def field(state: Parts, t: float) -> Parts:
            create = torch.is_grad_enabled()
            with torch.enable_grad():
                y = state[0] if create and state[0].requires_grad else state[0].detach().requires_grad_()
                v = self._velocity(t, y, label)
                trace = divergence(v, y, probes, create).sum(0)
            v = v if create else v.detach()
            return v, trace, v.square().flatten(1).mean(1)

        zero = u.new_zeros(u.shape[0])
        with torch.set_grad_enabled(keep):
            solver = self.solver.refined() if refine else self.solver
            learned = [p for p in self.net.parameters() if p.requires_grad] if adjoint else None
            end, gain, effort = solver.solve(field, (u, zero, zero), *self.times, adjoint=learned)
            z = end.flatten(1) / self.base_scale
        length = self.times[1] - self.times[0]
        return z, gain - z.shape[1] * math.log(self.base_scale), effort * length

    def _velocity(self, t: float, y: Tensor, label: Tensor | None) -> Tensor:
        v = self.net(y.flatten(1) if self.flatten else y, y.new_full((y.shape[0],), t), label)
        if self.flatten and v.shape == (y.shape[0], math.prod(self.shape)):
            v = v.reshape(y.shape)
        if v.shape != y.shape:
            raise ValueError(f"the velocity of x {tuple(y.shape)} has its shape, got {tuple(v.shape)}")
        return v
