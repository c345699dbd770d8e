r"""What composites of descriptions say about scenes, exactly: the law of the number of objects, and draws.

For a description c of one object, chosen uniformly among the N of a scene x, :math:`p(c \mid x) = \frac1N \sum_i
\delta(c - c_i)`. The composite :math:`p(x) \prod_j (p(x \mid c_j) / p(x))^{w_j}` is therefore

.. math:: p(x) \prod_j \Bigl(\frac1N \sum_i \delta(c_j - c_i)\Bigr)^{w_j} .

**Places.** Let :math:`c_1 \dots c_k` name places and δ be a narrow kernel, constant on a ball of radius ε, say. While
2ε is less than the distance of any two places, and of any two objects, at most one object matches each and no object
two, so :math:`(\sum_i \delta)^w` is a constant power of the ball's volume times "some object matches", and that
constant is the same for every N. What is left depends on N:

.. math:: p(N \mid c, w) \propto p(N) \, N^{-\sum_j w_j} \, (N)_k \, \rho_N(c_1, \dots, c_k), \qquad
          \rho_N = \frac{a(N - k \mid c)}{a(N \mid \emptyset) \, V^k},

with :math:`(N)_k = N (N-1) \cdots (N-k+1)` ways to say which object matches which place, and :math:`\rho_N` the joint
density of k labelled centres of N that keep their distance: a(n | c) is the probability that n uniform points of the
square of volume V keep it to each other and to c. It is estimated without bias by sequential Monte Carlo in
independent batches, whose spread gives the standard error. Two descriptions of one place name one object: their
powers add in :math:`N^{-\sum w}`, k counts the place once. Attributes are independent of N and of places, so those
that come with a place change nothing but the object found there.

**Attributes alone**, such as "red", give :math:`p(c \mid x) = n_c / N`. Powers of counts are summed over all
assignments of pairs (shape, colour) to the N objects, exactly. So are negations :math:`(1 - n_c / N)^\gamma`, which
for γ = ∞ leaves the scenes without c.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.models.data.scenes import Layouts, Scenes

_CHUNK = 4_000_000  # points of a stage of the Monte Carlo that are in memory at once
_TRIES = 200_000  # proposals of a round of rejection


@dataclass(frozen=True)
class CountLaw:
    """The law of the number of objects of n pictures, each for its own requests.

    Attributes:
        masses: p(N = 1 … most) in float64, ``(n, most)``.
        error: standard errors of the Monte Carlo, ``(n, most)``; a number of objects that found no room in any of the
            tries has mass and error 0.
        density: the same before normalisation: the joint density of N and the requested places, up to one constant.
    """

    masses: Tensor
    error: Tensor
    density: Tensor

    def average(self) -> tuple[Tensor, Tensor]:
        """Mean masses ``(most,)`` over the pictures and a bound on their errors (they share random numbers)."""
        return self.masses.mean(0), self.error.mean(0)

    def expected(self) -> Tensor:
        """Mean number of objects of each picture, ``(n,)``."""
        return self.masses @ torch.arange(1.0, self.masses.shape[1] + 1, dtype=torch.float64)


@dataclass(frozen=True)
class _Content:
    """Weighted assignments of pairs to N objects, for N = 1 … most; the first are those at requested places.

    Attributes:
        mass: expected weight given N, ``(most,)``.
        tables: atoms of each object ``(M, N)`` and weights ``(M,)``, by N.
        atoms: the pairs (indices into ``scenes.pairs``) that the requests do not tell apart.
    """

    mass: Tensor
    tables: tuple[tuple[Tensor, Tensor], ...]
    atoms: tuple[Tensor, ...]


# ------------------------------------------------------------------ the law of N


def count_law(
    scenes: Scenes,
    asked: Requests,
    powers: float | Sequence[float] = 1.0,
    without: Sequence[Mapping[str, object]] = (),
    strength: float = math.inf,
    particles: int = 4000,
    batches: int = 10,
    seed: int = 0,
) -> CountLaw:
    """The exact law of N of ``p(x) ∏_j (p(x | c_j) / p(x))^{w_j} ∏_m (1 − n_m / N)^γ``.

    Args:
        scenes: the law of scenes.
        asked: conditions c_j of n pictures, ``(n, k)``; k = 0 is the prior.
        powers: w_j > 0, one or k of them.
        without: attributes whose objects are negated, such as ``[{"color": "red"}]``.
        strength: γ; infinity leaves scenes that have none.
        particles, batches: of the Monte Carlo for each picture.
        seed: of the Monte Carlo.

    Raises:
        ValueError: places outside the prior's or too close to each other, pairs that no scene has, powers that are not
            positive.

    Example:
        >>> law = count_law(Scenes(), Requests.of({"color": "red"}))
        >>> [round(p, 3) for p in law.masses[0].tolist()]  # one condition on an average object keeps the prior
        [0.2, 0.2, 0.2, 0.2, 0.2]
    """
    query = _Query.of(scenes, asked, powers, without, strength)
    content = torch.stack([_content(scenes, *key).mass for key in query.signatures])[query.signature_of]
    count = torch.arange(1, scenes.most + 1, dtype=torch.float64)
    density = content * count**-query.total
    relative = torch.zeros(len(asked), batches, scenes.most, dtype=torch.float64)
    if query.k:
        places = _places(scenes, query.pins, particles, batches, seed)
        average = places.mean(1, keepdim=True)
        density = density * average[:, 0]
        relative = torch.where(average.gt(0), places / average, 1.0) - 1
    if (density.sum(1) <= 0).any():
        raise ValueError("no scene of the prior has what was asked: its composite has no mass")
    masses = density / density.sum(1, keepdim=True)
    # errors to first order, from the spread of the batches
    relative = relative - (relative * masses[:, None]).sum(-1, keepdim=True)
    error = masses * (relative.var(1) / batches).sqrt()
    return CountLaw(masses, error, density)


def _places(scenes: Scenes, pins: Tensor, particles: int, batches: int, seed: int) -> Tensor:
    """(N)_k ρ_N(pins) for N = 1 … most, estimated in each batch, ``(n, batches, most)``."""
    n, k = pins.shape[:2]
    prior = _room(scenes, ((),), scenes.most, 20 * particles, batches, seed)[0]  # (batches, most + 1)
    rows = tuple(tuple(row) for row in pins.flatten(1).tolist())
    pinned = _room(scenes, rows, scenes.most - k, particles, batches, seed + 1)  # (n, batches, most − k + 1)
    ways = torch.tensor([math.perm(count, k) for count in range(k, scenes.most + 1)], dtype=torch.float64)
    area = (scenes.size - 2 * scenes.margin) ** 2
    found = torch.zeros(n, batches, scenes.most, dtype=torch.float64)
    found[..., k - 1 :] = ways * pinned / (area**k * prior[:, k:])
    return found


@dataclass(frozen=True)
class _Query:
    """Requests and powers, sorted into places, attributes alone and negations."""

    pins: Tensor  # (n, k, 2)
    k: int
    total: float  # sum of the powers of conditions with a place
    signatures: tuple[tuple, ...]  # arguments of _content
    signature_of: Tensor  # (n,) index into these

    @classmethod
    def of(
        cls,
        scenes: Scenes,
        asked: Requests,
        powers: float | Sequence[float],
        without: Sequence[Mapping[str, object]],
        strength: float,
    ) -> "_Query":
        w = [float(powers)] * asked.k if isinstance(powers, (int, float)) else [float(value) for value in powers]
        if len(w) != asked.k or not all(0 < value < math.inf for value in w):
            raise ValueError(f"powers are one positive number or {asked.k} of them, got {powers}; negate with without=")
        if not strength > 0:
            raise ValueError(f"strength is positive or infinite, got {strength}")
        placed = _columns_placed(asked)
        negated = Requests.of(*without)
        if negated.placed.any():
            raise ValueError(
                "without= takes attributes only: scenes without objects in a region are drawn by rejection"
            )
        merged = asked.merged()
        at = _columns_placed(merged)
        pins = merged.position[:, at]
        check_places(scenes, pins)
        if pins.shape[1] > scenes.most:
            raise ValueError(f"{pins.shape[1]} places are asked of scenes of at most {scenes.most} objects")
        there = [_masks(scenes, merged.shape[:, j], merged.color[:, j]) for j in range(merged.k) if at[j]]
        alone = [_masks(scenes, asked.shape[:, j], asked.color[:, j]) for j in range(asked.k) if not placed[j]]
        power = tuple(value for value, there_is in zip(w, placed.tolist(), strict=True) if not there_is)
        none = tuple(_masks(scenes, negated.shape[:, j], negated.color[:, j])[0] for j in range(negated.k))
        rows = [
            (tuple(column[i] for column in there), tuple(column[i] for column in alone), power, none, float(strength))
            for i in range(len(asked))
        ]
        unique = tuple(dict.fromkeys(rows))
        index = {row: i for i, row in enumerate(unique)}
        total = sum(value for value, there_is in zip(w, placed.tolist(), strict=True) if there_is)
        return cls(pins, pins.shape[1], total, unique, torch.tensor([index[row] for row in rows], dtype=torch.long))


def check_places(scenes: Scenes, places: Tensor) -> None:
    """Refuse places ``(n, k, 2)`` that objects of one scene cannot have.

    Raises:
        ValueError: outside the square of centres, or closer to each other than the scenes' distance.
    """
    low, high = scenes.margin - 1e-3, scenes.size - scenes.margin + 1e-3
    outside = ((places < low) | (places > high)).any(-1)
    if outside.any():
        raise ValueError(
            f"centres lie in [{scenes.margin:g}, {scenes.size - scenes.margin:g}]², got "
            f"{places[outside][0].tolist()}: the prior has no such scenes"
        )
    k = places.shape[1]
    first, second = torch.triu_indices(k, k, 1)
    gap = (places[:, first] - places[:, second]).norm(dim=-1)
    if (gap < scenes.distance - 1e-3).any():
        raise ValueError(
            f"two places are {float(gap.min()):.3g} px apart and the prior's objects at least {scenes.distance:g} px"
        )


def _columns_placed(asked: Requests) -> Tensor:
    placed = asked.placed
    if (placed.any(0) != placed.all(0)).any():
        raise ValueError("only some pictures name a place in a column: split the requests by what they ask")
    return placed.all(0) if len(placed) else torch.zeros(asked.k, dtype=torch.bool)


def _masks(scenes: Scenes, shape: Tensor, color: Tensor) -> list[int]:
    """For each row the allowed pairs that agree with it, as bits."""
    pairs = scenes.pairs
    agree = (shape[:, None] < 0) | (pairs[:, 0] == shape[:, None])
    agree &= (color[:, None] < 0) | (pairs[:, 1] == color[:, None])
    return (agree.long() << torch.arange(len(pairs))).sum(1).tolist()


@lru_cache(maxsize=256)
def _room(
    scenes: Scenes, rows: tuple[tuple[float, ...], ...], free: int, particles: int, batches: int, seed: int
) -> Tensor:
    """a(0 … free | pins) for each row of pins and each batch, ``(n, batches, free + 1)`` in float64."""
    pins = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(rows[0]) // 2 if rows else 0, 2).float()
    generator = torch.Generator().manual_seed(seed)
    size = max(1, _CHUNK // (particles * batches))
    return torch.cat([_sequential(scenes, part, free, particles, batches, generator) for part in pins.split(size)])


def _sequential(
    scenes: Scenes, pins: Tensor, free: int, particles: int, batches: int, generator: torch.Generator
) -> Tensor:
    """Points added one by one; those that keep the distance are resampled, the product of their shares is a(n)."""
    rows = len(pins) * batches
    pins = pins.repeat_interleave(batches, 0)[:, None].expand(-1, particles, -1, -1)
    placed = pins.new_empty(rows, particles, 0, 2)
    found = torch.ones(rows, free + 1, dtype=torch.float64)
    for n in range(free):
        point = _uniform(scenes, (rows, particles), generator)
        keeps = _keeps(scenes, point, pins) & _keeps(scenes, point, placed)
        found[:, n + 1] = found[:, n] * keeps.double().mean(1)
        survivors = keeps.sum(1, keepdim=True)
        order = (~keeps).to(torch.uint8).argsort(dim=1, stable=True)  # survivors first
        pick = (torch.rand((rows, particles), generator=generator) * survivors).long()
        parent = order.gather(1, pick.clamp(max=particles - 1))
        placed = torch.cat([placed, point[:, :, None]], 2)
        placed = placed.gather(1, parent[..., None, None].expand(-1, -1, n + 1, 2))
    return found.reshape(-1, batches, free + 1)


def _uniform(scenes: Scenes, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return scenes.margin + (scenes.size - 2 * scenes.margin) * torch.rand((*shape, 2), generator=generator)


def _keeps(scenes: Scenes, point: Tensor, others: Tensor) -> Tensor:
    """Whether points ``(…, 2)`` keep the distance to all of ``(…, m, 2)``."""
    return ((point[..., None, :] - others).square().sum(-1) >= scenes.distance**2).all(-1)


@lru_cache(maxsize=1024)
def _content(
    scenes: Scenes,
    there: tuple[int, ...],
    alone: tuple[int, ...],
    powers: tuple[float, ...],
    none: tuple[int, ...],
    strength: float,
) -> _Content:
    """All assignments of pairs to N objects with their weights; masks are bits of allowed pairs."""
    kinds = len(scenes.pairs)
    masks = (*there, *alone, *none)
    groups: dict[tuple[int, ...], list[int]] = {}
    for pair in range(kinds):
        groups.setdefault(tuple(mask >> pair & 1 for mask in masks), []).append(pair)
    member = torch.tensor(list(groups), dtype=torch.float64).reshape(len(groups), len(masks))
    share = torch.tensor([len(pairs) / kinds for pairs in groups.values()], dtype=torch.float64)
    mass, tables = [], []
    for n in range(1, scenes.most + 1):
        if n < len(there):
            mass.append(torch.zeros((), dtype=torch.float64))
            tables.append((torch.zeros(0, n, dtype=torch.long), torch.zeros(0, dtype=torch.float64)))
            continue
        assigned = torch.cartesian_prod(*[torch.arange(len(groups))] * n).reshape(-1, n)
        weight = share[assigned].prod(1)
        for j in range(len(there)):
            weight = weight * member[assigned[:, j], j]
        for l, power in enumerate(powers):
            weight = weight * (member[assigned, len(there) + l].sum(1) / n) ** power
        for m in range(len(none)):
            column = len(there) + len(alone) + m
            weight = weight * (1 - member[assigned, column].sum(1) / n) ** strength
        mass.append(weight.sum())
        tables.append((assigned[weight > 0], weight[weight > 0]))
    return _Content(torch.stack(mass), tuple(tables), tuple(torch.tensor(pairs) for pairs in groups.values()))


# ------------------------------------------------------------------ exact draws


def exact_draws(
    scenes: Scenes,
    asked: Requests,
    powers: float | Sequence[float] = 1.0,
    without: Sequence[Mapping[str, object]] = (),
    strength: float = math.inf,
    generator: torch.Generator | None = None,
    law: CountLaw | None = None,
) -> Layouts:
    """One scene of the composite for each of the n pictures of ``asked``, with objects exactly at the places asked.

    N comes from :func:`count_law`, attributes from the weighted assignments, the other centres by rejection; objects
    are in random order. For n draws for one set of conditions give ``Requests.of(…, n=n)``.

    Args:
        scenes, asked, powers, without, strength: as :func:`count_law` takes them.
        generator: of the draws; the law has a seed of its own.
        law: that of these requests if it is known, with a row for each picture or one for all.

    Raises:
        ValueError: as :func:`count_law`.
    """
    query = _Query.of(scenes, asked, powers, without, strength)
    if law is None:
        same = len(asked) > 1 and all(bool((t == t[:1]).all()) for t in (asked.position, asked.shape, asked.color))
        law = count_law(scenes, asked.rows(slice(0, 1)) if same else asked, powers, without, strength)
    masses = law.masses.expand(len(asked), -1)
    count = torch.multinomial(masses, 1, replacement=True, generator=generator)[:, 0] + 1 if len(asked) else asked.k
    count = torch.as_tensor(count).reshape(len(asked))
    position = _with_room(scenes, query.pins, count, generator)
    pair = torch.zeros(len(asked), scenes.most, dtype=torch.long)
    for index, key in enumerate(query.signatures):
        content = _content(scenes, *key)
        for n in range(1, scenes.most + 1):
            rows = ((query.signature_of == index) & (count == n)).nonzero()[:, 0]
            if len(rows):
                pair[rows, :n] = _pairs(content, n, len(rows), generator)
    present = torch.arange(scenes.most) < count[:, None]
    chosen = scenes.pairs[pair]
    order = torch.where(present, torch.rand(present.shape, generator=generator), 2.0).argsort(1)
    columns = [torch.where(present, values, -1) for values in (*position.unbind(-1), *chosen.unbind(-1))]
    x, y, shape, color = (values.gather(1, order) for values in columns)
    return Layouts(count, torch.stack([x, y], -1), shape, color)


def _pairs(content: _Content, n: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """Pairs of n objects of some scenes, ``(rows, n)``."""
    assigned, weight = content.tables[n - 1]
    atom = assigned[torch.multinomial(weight, rows, replacement=True, generator=generator)]
    sizes = torch.tensor([len(pairs) for pairs in content.atoms])
    padded = torch.nn.utils.rnn.pad_sequence(list(content.atoms), batch_first=True)
    within = (torch.rand(atom.shape, generator=generator) * sizes[atom]).long()
    return padded[atom, within]


def _with_room(scenes: Scenes, pins: Tensor, count: Tensor, generator: torch.Generator | None) -> Tensor:
    """Centres ``(n, most, 2)``: the pins, then others that are uniform given that all keep the distance."""
    k = pins.shape[1]
    found = torch.full((len(pins), scenes.most, 2), -1.0)
    found[:, :k] = pins.float()
    pending = torch.arange(len(pins))
    slots = torch.arange(scenes.most)
    while len(pending):
        tries = max(1, min(4096, _TRIES // len(pending)))
        proposal = found[pending, None].repeat(1, tries, 1, 1)
        proposal[:, :, k:] = _uniform(scenes, (len(pending), tries, scenes.most - k), generator)
        gap = (proposal[:, :, :, None] - proposal[:, :, None]).square().sum(-1)
        # pairs of pins were checked; rounding must not refuse them here
        idle = (slots[:, None] >= slots) | (slots[:, None] < k) & (slots < k)
        beyond = torch.maximum(slots[:, None], slots) >= count[pending, None, None]
        keeps = ((gap >= scenes.distance**2) | idle | beyond[:, None]).all(-1).all(-1)
        done = keeps.any(1)
        found[pending[done]] = proposal[done, keeps[done].long().argmax(1)]
        pending = pending[~done]
    return found


# ------------------------------------------------------------------ prior scenes, weighted


def description_weights(
    layouts: Layouts,
    asked: Requests,
    powers: float | Sequence[float] = 1.0,
    without: Sequence[Mapping[str, object]] = (),
    strength: float = math.inf,
    radius: float = 1.0,
) -> Tensor:
    """∏_j (matches_j / N)^{w_j} ∏_m (1 − n_m / N)^γ of given scenes, with balls of ``radius`` px for places.

    What :func:`count_law` computes, from its definition: prior scenes with these weights are the composite with δ a
    ball, whatever the conditions. Slow for many places, and no formula to get wrong.

    Args:
        layouts: n scenes.
        asked: requests of n pictures, or of one.
        powers, without, strength: as :func:`count_law` takes them.
        radius: of the balls.

    Returns:
        Weights ``(n,)`` in float64.
    """
    w = [float(powers)] * asked.k if isinstance(powers, (int, float)) else [float(value) for value in powers]
    present = layouts.shape >= 0
    count = present.sum(1).double()

    def share(which: Requests, j: int) -> Tensor:
        match = present & ((which.shape[:, j, None] < 0) | (layouts.shape == which.shape[:, j, None]))
        match &= (which.color[:, j, None] < 0) | (layouts.color == which.color[:, j, None])
        near = (layouts.position - which.position[:, j, None]).square().sum(-1) < radius**2
        return (match & (near | ~which.placed[:, j, None])).sum(1).double() / count

    weight = torch.ones(len(count), dtype=torch.float64)
    for j, power in enumerate(w):
        weight = weight * share(asked, j) ** power
    negated = Requests.of(*without)
    for m in range(negated.k):
        weight = weight * (1 - share(negated, m)) ** strength
    return weight
