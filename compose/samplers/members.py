"""Scores of a formula's members at one (x, σ): each network in one forward, whatever it serves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.flat import FlatView
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Composite, Product, common_range, open_leaves, unite, value_of
from boltzmix.compose.term import Term, evaluate
from boltzmix.compose.variable import State, map_state


class Members(Composite):
    """Several densities over one space, evaluated together and kept apart; no density itself.

    Products and sums flatten and merge their members; these stay as they are.

    Raises:
        ScopeError: members over different variables.
        ValueError: members that share no noise level.
    """

    path = "annealed"
    path_reason = "it stands for several densities"
    has_energy = False
    has_score = False

    def __init__(self, terms: Sequence[Term]) -> None:
        """Hold the members."""
        super().__init__()
        self.members = nn.ModuleList(terms)
        self.variables = unite([t.variables for t in terms], added=True)
        self.sigma_range = common_range(terms)

    def terms(self) -> list[Term]:
        """The members, as given."""
        return list(self.members)  # pyright: ignore[reportReturnType]

    def _leaves(self) -> list[Term]:
        return open_leaves(self.terms())

    def name(self) -> str:
        """The members' names."""
        return ", ".join(t.name() for t in self.terms())


def members_of(term: Term) -> list[Term]:
    """The factors of a product, the members of a sum, or the term itself; in the order of the normal form."""
    if isinstance(term, Members):
        return term.terms()
    if isinstance(term, Product):
        return [factor for factor, _ in term.pairs()]
    if isinstance(term, Mixture):
        return term._terms()
    return [term]


def member_scores(term: Term | Sequence[Term], x: State, sigma: Any) -> list[State]:
    r"""Scores :math:`s_i(x; \sigma)` of every member, from one evaluation of the formula.

    Exponents and weights do not enter, so a mixture of score-only members will do.

    Args:
        term: a formula, whose members are :func:`members_of` it, or the members themselves.
        x: state, ``(N, *event)`` or a mapping.
        sigma: None, or a tensor ``()`` or ``(N,)``.

    Returns:
        One score for each member, over the member's own variables.

    Example:
        >>> from boltzmix.compose.gaussian import Gaussian
        >>> p, q = Gaussian(torch.zeros(1), 1.0), Gaussian(torch.ones(1), 1.0)
        >>> [s.tolist() for s in member_scores(p * q**2, torch.zeros(1, 1), None)]
        [[[-0.0]], [[1.0]]]
    """
    members = members_of(term) if isinstance(term, Term) else list(term)
    energies = any(isinstance(m, Composite) and m._needs_energies() for m in members)
    values = evaluate(open_leaves(members), x, sigma, energy=energies, score=True)
    scores = [value_of(m, values, x, sigma, True)[1] for m in members]
    assert all(s is not None for s in scores)
    return scores  # pyright: ignore[reportReturnType]


def flat_member_scores(view: FlatView, x: Tensor, sigma: float | Tensor | None) -> list[Tensor]:
    """Scores ``(N, D)`` of every member of a view's formula, zero along variables that a member does not have.

    Counts as one evaluation, which costs the networks what the formula costs.

    Args:
        view: a view in the term's own coordinates, as formulas with noise levels have.
        x: flat states ``(N, D)``.
        sigma: noise level, None for the data end.
    """
    assert not view.transformed, "formulas with noise levels keep their coordinates"
    view.count(x.shape[0])
    level = torch.tensor(sigma, dtype=x.dtype, device=x.device) if isinstance(sigma, int | float) else sigma
    state = view.unravel(x)
    with torch.no_grad():
        scores = member_scores(view.term, state, level)
    return [view.ravel(_whole(score, state)) for score in scores]


def _whole(score: State, x: State) -> State:
    if isinstance(score, Tensor):
        return score
    assert isinstance(x, Mapping)
    return {name: score[name] if name in score else map_state(torch.zeros_like, x[name]) for name in x}  # pyright: ignore[reportReturnType]
