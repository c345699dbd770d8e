r"""What replicas at several temperatures see: the target between a reference and itself.

.. math:: E_\beta(x) = \beta E(x) \quad\text{or}\quad E_\beta(x) = (1 - \beta) E_{ref}(x) + \beta E(x),

the whole energy tempered, or a geometric path from a reference. The energies and scores of both ends, the *parts*, are
kept with each replica, so that what it has at another temperature costs nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boltzmix.compose.flat import Counter, FlatView
from boltzmix.compose.kernels.base import Kernel, State, Target, energy_of
from boltzmix.compose.product import scope_names, unite
from boltzmix.compose.term import Term
from boltzmix.compose.variable import describe_variables


@dataclass(frozen=True)
class Parts:
    """Energies ``(…, P)`` and scores ``(…, P, S)`` of the target, P = 1, or of the target and the reference, P = 2.

    Scores are what the kernel calls by this name, S = D for most; all that is asked of them is that they are linear in
    the energy.
    """

    energies: Tensor
    scores: Tensor

    def at(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The energy ``(…)`` and score ``(…, S)`` with ``weights`` ``(…, P)``; what weighs nothing is not looked at."""
        off = weights == 0
        energy = torch.where(off, 0.0, weights * self.energies).sum(-1)
        score = torch.where(off[..., None], 0.0, weights[..., None] * self.scores).sum(-2)
        return energy, score

    @property
    def slope(self) -> Tensor:
        """dE_β/dβ ``(…)``: the energy, less that of the reference."""
        return self.energies[..., 0] if self.energies.shape[-1] == 1 else self.energies[..., 0] - self.energies[..., 1]


def weights_of(betas: Tensor, parts: int) -> Tensor:
    """The weights ``(…, P)`` of the parts at each β."""
    return betas[..., None] if parts == 1 else torch.stack([betas, 1.0 - betas], -1)


class Ends:
    """The target and, where there is one, the reference, as a kernel evaluates them over flat states.

    Raises:
        ValueError: a condition for each row of the target.
        TypeError, ScopeError: a reference that does not fit the target.
    """

    def __init__(self, kernel: Kernel, target: Target, reference: Term | None) -> None:
        """Lay the reference out like the target."""
        self.kernel, self.target, self.reference = kernel, target, reference
        view = getattr(target, "view", None)
        self.view: FlatView | None = view if isinstance(view, FlatView) else None
        self.count = 1 if reference is None else 2
        self.fresh = reference is not None and reference.samplable
        self.normalized = reference is not None and reference.normalized
        if self.view is not None and self.view.per_row:
            raise ValueError(
                "a condition for each chain makes as many targets, and ParallelTempering has several replicas of "
                "each chain; condition on one value at a time"
            )
        self.targets: list[Any] = [target]
        if reference is None:
            return
        if self.view is None:
            self.targets.append(_Plain(reference))
            return
        if scope_names(reference) != scope_names(self.view.term):
            raise ValueError(
                f"the reference is over {describe_variables(reference.variables)} and the target over "
                f"{describe_variables(self.view.term.variables)}"
            )
        unite([reference.variables, self.view.term.variables])
        self._layout = self.view.with_term(reference)
        self._layout.counter = Counter()  # a target and its reference at one x are one evaluation
        self.targets.append(self._layout.at(None))
        if self.view.dim != self.view.full_dim:  # what a Clamp leaves of a reference is neither
            self.fresh = self.normalized = False

    def evaluate(self, x: Tensor) -> Parts:
        """What the kernel reads of both ends."""
        nowhere = State(x, x.new_full((len(x),), torch.nan), torch.full_like(x, torch.nan))
        states = [self.kernel.refresh(end, nowhere) for end in self.targets]
        self._count(x)
        return Parts(torch.stack([s.energy for s in states], -1), torch.stack([s.score for s in states], -2))

    def of(self, x: Tensor, method: str) -> list[Any]:
        """What both ends say to one of a target's methods."""
        self._count(x)
        return [energy_of(end, x) if method == "energy" else getattr(end, method)(x) for end in self.targets]

    def _count(self, x: Tensor) -> None:
        if self.view is not None and self.reference is not None:
            self.view.counter.network_rows += len(x) * self.reference._rows()

    def draw(self, n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Exact draws of the reference, ``(n, D)``."""
        assert self.reference is not None
        found = self.reference.sample(n, generator)
        flat = self._layout.ravel(found) if self.view is not None else found
        assert isinstance(flat, Tensor)
        return flat.to(like)


class TemperedTarget:
    """The target of N · T rows with a β of their own each; whatever else a kernel asks for is the target's.

    It remembers its last evaluation: for most kernels that is of the proposals, and the parts of replicas that were
    accepted are there.
    """

    has_energy = True

    def __init__(self, ends: Ends, weights: Tensor) -> None:
        """Rows in the order of ``weights`` ``(N · T, P)``."""
        self.ends, self.weights = ends, weights
        self.last: tuple[Tensor, Parts] | None = None

    def __getattr__(self, name: str) -> Any:
        """What kernels read of a target that no temperature changes."""
        if name not in ("dim", "dtype", "device", "levels", "sigma", "view"):
            raise AttributeError(f"a target at several temperatures has no {name!r}")
        found = getattr(self.ends.target, name)
        return _ByRow(found) if name == "view" else found

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and scores at each row's β."""
        return self._joined(x, "energy_and_score")

    def energy_and_one_hot_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and the scores of one-hot vectors ``(N, D, K)``, at each row's β."""
        energy, score = self._joined(x, "energy_and_one_hot_score")
        return energy, score.reshape(*x.shape, -1)

    def energy(self, x: Tensor) -> Tensor:
        """Energies at each row's β."""
        self._check(x)
        energies = torch.stack(self.ends.of(x, "energy"), -1)
        parts = Parts(energies, x.new_full((*energies.shape, x.shape[1]), torch.nan))
        if not self.ends.kernel.uses_score:
            self.last = (x, parts)
        return parts.at(self.weights)[0]

    def energies(self, x: Tensor) -> Tensor:
        """Energies ``(N, M)`` of M candidates for each row, ``(N, M, D)``, at its β."""
        self._check(x)
        found = [energies_at(end, x) for end in self.ends.targets]
        return Parts(torch.stack(found, -1), x.new_zeros(*x.shape[:2], len(found), 1)).at(self.weights[:, None])[0]

    def score(self, x: Tensor) -> Tensor:
        """Scores at each row's β."""
        self._check(x)
        scores = torch.stack(self.ends.of(x, "score"), -2)
        return Parts(self.weights, scores).at(self.weights)[1]

    def _joined(self, x: Tensor, method: str) -> tuple[Tensor, Tensor]:
        self._check(x)
        pairs = self.ends.of(x, method)
        parts = Parts(torch.stack([e for e, _ in pairs], -1), torch.stack([s.flatten(1) for _, s in pairs], -2))
        self.last = (x, parts)
        return parts.at(self.weights)

    def _check(self, x: Tensor) -> None:
        if len(x) != len(self.weights):
            raise ValueError(f"{len(x)} rows at {len(self.weights)} temperatures: every row has its own here")

    def parts_of(self, x: Tensor, before: Tensor, parts: Parts) -> Parts:
        """The parts at ``x``, from the last evaluation, or from ``before``, or by evaluating what is in neither."""
        known = (x == before).all(-1)
        energies, scores = parts.energies, parts.scores
        if self.last is not None:
            last, found = self.last
            hit = (x == last).all(-1)
            energies = torch.where(hit[:, None], found.energies, energies)
            scores = torch.where(hit[:, None, None], found.scores, scores)
            known = known | hit
        rows = (~known).nonzero()[:, 0]
        if len(rows):
            found = self.ends.evaluate(x[rows])
            energies = energies.index_copy(0, rows, found.energies)
            scores = scores.index_copy(0, rows, found.scores)
        return Parts(energies, scores)


class _ByRow:
    """A view whose rows are told apart: kernels must not evaluate a part of them."""

    per_row = True

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


class _Plain:
    """A reference over flat states, beside a target that is no term."""

    has_energy = True

    def __init__(self, term: Term) -> None:
        self.term = term

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            energy, score = self.term._energy_and_score(x, None)
        assert isinstance(score, Tensor)
        return energy.to(x), score.to(x)

    def score(self, x: Tensor) -> Tensor:
        return self.energy_and_score(x)[1]


def energies_at(target: Target, x: Tensor) -> Tensor:
    """Energies ``(N, M)`` of candidates ``(N, M, D)``."""
    many = getattr(target, "energies", None)
    return energy_of(target, x.flatten(0, 1)).reshape(x.shape[:2]) if many is None else many(x)
