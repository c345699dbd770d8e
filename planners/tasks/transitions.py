r"""A trajectory's density as a product of transition energies: planning by energy minimisation.

One term over (s, a, s') serves every step of a trajectory :math:`x = (s_0, a_0), \dots, (s_{H-1}, a_{H-1})`:

.. math:: E(x; \sigma) = \sum_{t=0}^{H-2} E_2(s_t, a_t, s_{t+1}; \sigma) - \sum_{t=1}^{H-2} E_1(s_t; \sigma)
          \;\bigl[\,+ E_0(a_{H-1}; \sigma)\,\bigr].

With a conditional :math:`p(s' \mid s, a)` and no :math:`E_1` it is the Markov chain. A joint :math:`p(s, a, s')` counts
each inner state twice; the quotient by the marginal :math:`p(s)`, ``overlap=``, takes that back, and the product is
again the chain where the two densities agree. Without it the states are drawn towards where the data are dense, which
a planner may want: the walls of a maze are where they are not.

The last action leads nowhere and no factor holds it; :math:`E_0` is that of N(0, 1 + σ²) in normalised coordinates,
there so that the density can be normalised.

Transitions of noised data, p(s, a, s'; σ), make an annealed path of trajectories: a factor sees the noise of its two
tokens, and the product of noised factors is not the noised product. Its end at σ = 0 is exact.

Source: Y. Du, T. Lin, I. Mordatch (2019), Model-based planning with energy-based models. The quotient is Bethe's:
J. Yedidia, W. Freeman, Y. Weiss (2005), Constructing free-energy approximations and generalized belief propagation
algorithms.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.product import common_range
from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import Variable, expand_rows
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.base import Task


class TransitionChain(Term):
    r"""The product of one transition density over the steps of a trajectory (see the module's page).

    Args:
        transition: a term over the vector (s, a, s'), or over variables in the order state, (action,) next; in the
            coordinates of the trajectory.
        horizon: H ≥ 2 tokens.
        state: S, state columns, which come first.
        action: A, action columns.
        overlap: a term over s whose factors are divided out at inner tokens; None leaves them.
        trajectory: mapping that says which space this is, as ``TrajectorySpace.to_dict`` writes it; so the chain can be
            a planner's prior.

    Raises:
        ValueError: sizes that do not fit.
        TypeError: no terms.

    Example:
        >>> from boltzmix.compose import Gaussian
        >>> steps = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))      # p(s, s')
        >>> chain = TransitionChain(steps, 3, 1, overlap=Gaussian(torch.zeros(1), 1.0))
        >>> chain.energy(torch.zeros(1, 3, 1)).shape, chain.path
        (torch.Size([1]), 'annealed')
    """

    def __init__(
        self,
        transition: Term,
        horizon: int,
        state: int,
        action: int = 0,
        *,
        overlap: Term | None = None,
        trajectory: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the sizes fit."""
        super().__init__()
        for name, value, least in (("horizon", horizon, 2), ("state", state, 1), ("action", action, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is an int >= {least}, got {value!r}")
        sizes = [state, *([action] if action else []), state]
        if not isinstance(transition, Term):
            raise TypeError(f"a chain multiplies a term over (s, a, s'), got {type(transition).__name__}")
        self.horizon, self.state, self.action = horizon, state, action
        if isinstance(transition.variables, Variable):
            self._names: tuple[str, ...] | None = None
            found, wanted = transition.event_shape, (sum(sizes),)
        else:
            self._names = tuple(transition.variables)
            found, wanted = [v.shape for v in transition.variables.values()], [(size,) for size in sizes]
        self._cuts = sizes
        if found != wanted:
            raise ValueError(f"transitions of {state} states and {action} actions have shape {wanted}, got {found}")
        if overlap is not None and (not isinstance(overlap, Term) or not isinstance(overlap.variables, Variable)):
            raise TypeError("overlap is a term over the state (S,)")
        if overlap is not None and overlap.event_shape != (state,):
            raise ValueError(f"overlap is a term over the state ({state},), got {overlap.event_shape}")
        self.transition, self.overlap = transition, overlap
        self.variables = Variable((horizon, state + action))
        factors = [transition] if overlap is None else [transition, overlap]
        moving = [t for t in factors if t.path != "static"]
        if moving:
            self.path = "annealed"
            self.path_reason = "a product of noised transitions is not the noised product"
        self.sigma_range = common_range(moving)
        self.has_energy = all(t.has_energy for t in factors)
        self.has_score = all(t.has_score for t in factors)
        if trajectory is not None:
            shape = trajectory.get("horizon"), len(trajectory.get("state", ())), len(trajectory.get("action", ()))
            if shape != (horizon, state, action):
                raise ValueError(f"the chain is over {(horizon, state, action)} tokens, states, actions, not {shape}")
            self.trajectory = dict(trajectory)

    def resized(self, horizon: int) -> "TransitionChain":
        """The same factors over another number of tokens."""
        given = getattr(self, "trajectory", None)
        return TransitionChain(
            self.transition, horizon, self.state, self.action, overlap=self.overlap,
            trajectory=None if given is None else {**given, "horizon": horizon},
        )  # fmt: skip

    def key(self) -> Hashable:
        """The factors and the horizon."""
        return ("chain", self.horizon, self.transition.key(), None if self.overlap is None else self.overlap.key())

    def name(self) -> str:
        """The factor's name."""
        return f"chain of {self.horizon - 1} {self.transition.name()}"

    # ----------------------------------------------------------------- evaluation

    def _pairs(self, x: Tensor) -> Tensor:
        """Vectors (s, a, s') of all steps, ``(N · (H − 1), 2S + A)``."""
        return torch.cat([x[:, :-1], x[:, 1:, : self.state]], 2).flatten(0, 1)

    def _levels(self, sigma: Tensor | None, count: int) -> Tensor | None:
        return sigma if sigma is None or sigma.ndim == 0 else sigma.repeat_interleave(count)

    def _of_pairs(self, pairs: Tensor, sigma: Any, energy: bool, score: bool) -> Evaluated:
        """Energies and scores of the steps, from a term over a vector or over variables."""
        state: Any = pairs
        if self._names is not None:
            state = dict(zip(self._names, pairs.split(self._cuts, 1), strict=True))
        e, s = _evaluate(self.transition, state, sigma, energy, score)
        if s is not None and self._names is not None:
            s = torch.cat([s[name] for name in self._names], 1)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return e, s

    def _value(self, x: Tensor, sigma: Any, energy: bool, score: bool) -> Evaluated:
        n, steps, s = x.shape[0], self.horizon - 1, self.state
        e, g = self._of_pairs(self._pairs(x), self._levels(sigma, steps), energy, score)
        total = None if e is None else e.reshape(n, steps).sum(1)
        slope = None
        if g is not None:
            assert isinstance(g, Tensor)
            g = g.reshape(n, steps, -1)
            left = torch.nn.functional.pad(g[..., : s + self.action], (0, 0, 0, 1))
            right = torch.nn.functional.pad(g[..., s + self.action :], (0, self.action, 1, 0))
            slope = left + right
        if self.overlap is not None and self.horizon > 2:
            inner = x[:, 1:-1, :s].flatten(0, 1)
            e, g = _evaluate(self.overlap, inner, self._levels(sigma, steps - 1), energy, score)
            total = None if total is None or e is None else total - e.reshape(n, steps - 1).sum(1)
            if slope is not None:
                assert isinstance(g, Tensor)
                slope = slope - torch.nn.functional.pad(g.reshape(n, steps - 1, s), (0, self.action, 1, 1))
        if self.action:
            last = x[:, -1, s:]
            variance = 1.0 if sigma is None or self.path == "static" else 1.0 + expand_rows(sigma, last) ** 2
            if total is not None:
                total = total + 0.5 * (last.square() / variance).sum(1)
            if slope is not None:
                slope = slope - torch.nn.functional.pad((last / variance)[:, None], (s, 0, steps, 0))
        return total, slope

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._value(x, sigma, True, False)[0]  # pyright: ignore[reportReturnType]

    def _score(self, x: Any, sigma: Any) -> Tensor:
        return self._value(x, sigma, False, True)[1]  # pyright: ignore[reportReturnType]

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        return self._value(x, sigma, True, True)  # pyright: ignore[reportReturnType]

    def _strength(self, sigma: Tensor) -> float | Tensor:
        """Factors that hold each entry: two at inner states, one at the ends and at actions; less the quotients."""
        if self.path == "static":
            return 0.0
        pair = self.transition._strength(sigma)
        single = 0.0 if self.overlap is None else self.overlap._strength(sigma)
        count = torch.zeros(self.horizon, self.state + self.action, dtype=torch.float64)
        if isinstance(pair, Tensor) and pair.ndim:
            raise TypeError(f"{self.transition.name()} holds some entries only; a chain needs factors over whole steps")
        count[:-1] += float(pair)
        count[1:, : self.state] += float(pair)
        count[1:-1, : self.state] -= float(single)
        if self.action:
            count[-1, self.state :] = 1.0
        return count.reshape(-1)

    def _information(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        strength = self._strength(sigma)
        assert isinstance(strength, Tensor)
        precision = (strength / sigma.double().cpu() ** 2).to(sigma.device)
        return precision, torch.zeros_like(precision)

    def _coarse(self, sigma: Tensor) -> Any:
        from boltzmix.compose.gaussian import Gaussian

        precision, _ = self._information(sigma)
        if not bool((precision > 0).all()):
            raise TypeError(f"{self.name()} is flat along some entries at large sigma and has no coarse form")
        return Gaussian(
            torch.zeros_like(precision).reshape(self.event_shape), precision.reciprocal().reshape(self.event_shape)
        )

    def _rows(self) -> int:
        inner = 0 if self.overlap is None else (self.horizon - 2) * self.overlap._rows()
        return (self.horizon - 1) * self.transition._rows() + inner


def _evaluate(term: Term, x: Any, sigma: Any, energy: bool, score: bool) -> tuple[Tensor | None, Any]:
    """Energy and score, each where it is wanted, from the cheapest hook."""
    level = None if term.path == "static" else sigma
    if energy and score:
        return term._energy_and_score(x, level)
    return (term._energy(x, level), None) if energy else (None, term._score(x, level))


class Transitions(Task):
    """Every step of a plan is likely under a transition density: :class:`TransitionChain` as a task.

    It multiplies a prior that says something else (smoothness, a style of motion), with a weight like other tasks.

    Args:
        transition: a term over (s, a, s') in the space's normalised coordinates, for all of its columns.
        overlap: a term over s to divide out at inner tokens.
        name: what results call it.

    Raises:
        TypeError: no term.
        ValueError: a term that does not fit the space.

    Example:
        >>> from boltzmix.compose import Gaussian
        >>> space = TrajectorySpace(3, ("x", "y"))
        >>> steps = Transitions(Gaussian(torch.zeros(4), 1.0))
        >>> steps.energy(torch.zeros(1, 3, 2), space).shape
        torch.Size([1])
    """

    def __init__(self, transition: Term, *, overlap: Term | None = None, name: str | None = None) -> None:
        """Hold the factors; the space is known when the task is used."""
        super().__init__(name)
        if not isinstance(transition, Term):
            raise TypeError(f"Transitions takes a term over (s, a, s'), got {type(transition).__name__}")
        self.transition, self.overlap = transition, overlap

    def modules(self) -> tuple[nn.Module, ...]:
        """The factors."""
        return (self.transition,) if self.overlap is None else (self.transition, self.overlap)

    def _fit(self, space: TrajectorySpace) -> None:
        self._term(space)

    def _term(self, space: TrajectorySpace) -> Term:
        return TransitionChain(
            self.transition, space.horizon, len(space.state), len(space.action), overlap=self.overlap
        )  # fmt: skip

    def _energy(self, tau: Tensor, space: TrajectorySpace) -> Tensor:
        # plans are judged in float64, and a network answers in its own numbers
        own = (t for net in self.modules() for t in (*net.parameters(), *net.buffers()) if t.is_floating_point())
        x = space.normalise(tau)
        return self._term(space).energy(x.to(next(own, x).dtype)).to(tau)
