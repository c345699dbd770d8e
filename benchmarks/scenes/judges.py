r"""Are the requested objects there, and how often is everything else as it should be?

**Hits.** Objects found and objects requested are matched one to one, as many as agree and as close as can be (the
assignment problem; Kuhn, 1955). A picture is right if all its requests are met and its parse is clean.

**Distributions.** For counts of categories with frequencies :math:`\hat p` from n pictures and a law p,
:math:`\mathrm{TV} = \tfrac12 \sum_i |\hat p_i - p_i|`. It is not zero for exact draws: their expected TV is the
*floor*, here simulated, with a law for each picture where requests differ. Beside it stands a *corrected* figure,

.. math:: \sqrt{\max(\mathrm{TV}^2 - \text{floor}^2, 0)} ,

which is zero for samples no further than exact draws are on average, and TV itself far above the floor. It cannot be
negative, so exact draws still average about two fifths of the floor; from a half on it is right to a tenth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from boltzmix.benchmarks.metrics import total_variation
from boltzmix.benchmarks.scenes.law import CountLaw
from boltzmix.benchmarks.scenes.parser import EXTRA, Parsed
from boltzmix.benchmarks.scenes.requests import Requests
from boltzmix.benchmarks.shares import Share, share
from boltzmix.models.data.scenes import COLORS, SHAPES, Layouts, Scenes

_REPLICATES = 400
_FAR = 1e6  # cost of a pair that does not agree


# --------------------------------------------------------------------------- hits


@dataclass(frozen=True)
class Matches:
    """Which object meets which request.

    Attributes:
        met: bool ``(n, k)``.
        found: index of the object among the parsed, long ``(n, k)``; −1 where none.
        distance: to the requested place in pixels, ``(n, k)``; NaN where none is met or no place was asked.
        clean: of the parses, bool ``(n,)``.
    """

    met: Tensor
    found: Tensor
    distance: Tensor
    clean: Tensor

    @property
    def right(self) -> Tensor:
        """Pictures that meet all requests and are clean, bool ``(n,)``."""
        return self.met.all(1) & self.clean

    def accuracy(self) -> Share:
        """Share of right pictures."""
        return share(self.right)


def match(parsed: Parsed, asked: Requests, radius: float = 2.0) -> Matches:
    """Requested objects matched one to one with the objects found.

    An object agrees with a request if it is within ``radius`` pixels of the place asked and has the shape and colour
    asked, whatever of these is asked. Two requests are two objects: descriptions of one object are joined first, by
    :meth:`Requests.merged` or as one request.

    Raises:
        ValueError: another number of pictures.
    """
    from scipy.optimize import linear_sum_assignment

    if len(asked) != len(parsed.count):
        raise ValueError(f"{len(parsed.count)} pictures and requests for {len(asked)}")
    present = parsed.shape[:, None] >= 0
    gap = (asked.position[:, :, None] - parsed.position[:, None]).norm(dim=-1)
    gap = torch.where(asked.placed[..., None], gap, 0.0)
    agrees = present & (gap <= radius)
    agrees &= (asked.shape[..., None] < 0) | (asked.shape[..., None] == parsed.shape[:, None])
    agrees &= (asked.color[..., None] < 0) | (asked.color[..., None] == parsed.color[:, None])
    cost = torch.where(agrees, gap, _FAR).double().numpy()
    found = torch.full(asked.shape.shape, -1)
    for row in range(len(asked)):
        wanted, have = (torch.as_tensor(index) for index in linear_sum_assignment(cost[row]))
        keep = agrees[row, wanted, have]
        found[row, wanted[keep]] = have[keep]
    met = found >= 0
    distance = gap.gather(2, found.clamp(min=0)[..., None])[..., 0]
    distance = torch.where(met & asked.placed, distance, torch.nan)
    return Matches(met, found, distance, parsed.clean)


@dataclass(frozen=True)
class Pairs:
    """Objects of two sets of scenes that lie on each other: ``row``, and their slots in either, all ``(m,)``."""

    row: Tensor
    first: Tensor
    second: Tensor


def pair_objects(first: Layouts, second: Layouts | Parsed, radius: float = 2.0) -> Pairs:
    """Objects matched by place alone, one to one within ``radius`` pixels."""
    from scipy.optimize import linear_sum_assignment

    gap = (first.position[:, :, None] - second.position[:, None]).norm(dim=-1)
    both = (first.shape >= 0)[:, :, None] & (second.shape >= 0)[:, None]
    near = both & (gap <= radius)
    cost = torch.where(near, gap, _FAR).double().numpy()
    row, own, other = [], [], []
    for index in range(len(gap)):
        a, b = (torch.as_tensor(part) for part in linear_sum_assignment(cost[index]))
        keep = near[index, a, b]
        own.append(a[keep])
        other.append(b[keep])
        row.append(torch.full_like(own[-1], index))
    return Pairs(torch.cat(row), torch.cat(own), torch.cat(other))


def image_error(parsed: Parsed) -> dict[str, float]:
    """Rms to the re-rendered parse: mean, median and 95 % quantile over finite pictures; how many are not finite."""
    rms = parsed.rms[parsed.finite].double()
    if len(rms) == 0:
        raise ValueError("no picture is finite: there is no error to speak of")
    return {
        "mean": float(rms.mean()),
        "median": float(rms.median()),
        "p95": float(torch.quantile(rms, 0.95)),
        "not_finite": float((~parsed.finite).sum()),
    }


# ---------------------------------------------------------------------- diversity


def entropy(counts: Tensor) -> float:
    """Entropy in nats of counted categories, with the correction (K − 1) / 2n of Miller and Madow (1955).

    Raises:
        ValueError: nothing was counted.
    """
    n = float(counts.sum())
    if not n > 0:
        raise ValueError("the entropy of no counts is not defined")
    p = counts[counts > 0].double() / n
    return float(-(p * p.log()).sum()) + (len(p) - 1) / (2 * n)


def diversity(images: Tensor, parsed: Parsed, asked: Requests, matches: Matches) -> dict[str, float]:
    """How much varies of what was not requested.

    Args:
        images: pictures ``(n, 3, S, S)`` of one set of requests; of several, ``distance`` has their
            differences, too.
        parsed, asked, matches: of these pictures.

    Returns:
        ``distance``: root mean square of differences over pairs of finite pictures, pixels and channels;
        ``shape`` and ``color``: entropies in nats of attributes over all objects but those of which this attribute was
        requested; ``count``: of the number of objects; NaN where there is nothing to count. Compare each with exact
        draws of the same requests.
    """
    finite = parsed.finite
    x = images[finite].double().flatten(1)
    spread = math.nan
    if len(x) > 1:
        squares = x.square().mean(1).mean() - x.mean(0).square().mean()
        spread = math.sqrt(max(0.0, 2 * len(x) / (len(x) - 1) * float(squares)))
    found = {"distance": spread}
    for name, own, wanted, kinds in (
        ("shape", parsed.shape, asked.shape, SHAPES),
        ("color", parsed.color, asked.color, COLORS),
    ):
        free = own >= 0
        row, j = (matches.met & (wanted >= 0)).nonzero(as_tuple=True)
        free[row, matches.found[row, j]] = False
        counts = torch.bincount(own[free], minlength=len(kinds))
        found[name] = entropy(counts) if counts.sum() else math.nan
    counts = torch.bincount(parsed.count[finite].clamp(min=0))
    found["count"] = entropy(counts) if counts.sum() else math.nan
    return found


# ------------------------------------------------------------------ distributions


@dataclass(frozen=True)
class Distance:
    """Total variation between what n pictures show and a law.

    Attributes:
        tv: as counted.
        floor: its expectation for exact draws.
        high: the 95 % quantile for exact draws.
        corrected: without what a finite sample adds (see the module).
        error: standard error of ``tv``, by resampling the pictures.
        n: pictures.
    """

    tv: float
    floor: float
    high: float
    corrected: float
    error: float
    n: int

    @property
    def excess(self) -> float:
        """TV above the floor."""
        return self.tv - self.floor


@dataclass(frozen=True)
class CountDistance(Distance):
    """Total variation of the number of objects, with its mean and the exact one's."""

    mean: float
    exact_mean: float
    masses: Tensor
    exact_masses: Tensor


def count_distance(count: Tensor, law: CountLaw | Tensor, most: int, seed: int = 0) -> CountDistance:
    """Total variation of N against its law.

    Args:
        count: objects of n pictures, long ``(n,)``: −1 (not finite), or 0 … ``most + EXTRA``; each is a category.
        law: masses of N = 1 … most, for all pictures ``(most,)`` or for each ``(n, most)``; the law is their mean.
        most: of the scenes.
        seed: of the simulated floor.

    Raises:
        ValueError: no picture, counts out of range, or masses of another shape.
    """
    masses = (law.masses if isinstance(law, CountLaw) else law).double()
    n = len(count)
    if n == 0 or not -1 <= int(count.min()) <= int(count.max()) <= most + EXTRA:
        raise ValueError(f"counts are −1 to {most + EXTRA} and of one picture or more, got {count.unique().tolist()}")
    if masses.shape not in ((most,), (1, most), (n, most)):
        raise ValueError(f"masses of N are ({most},) or ({n}, {most}), got {tuple(masses.shape)}")
    rows = torch.zeros(n, most + EXTRA + 2, dtype=torch.float64)  # categories −1, 0, 1, …
    rows[:, 2 : most + 2] = masses.reshape(-1, most).expand(n, most)
    own = torch.nn.functional.one_hot(count + 1, rows.shape[1]).double()
    found = _distance(own, rows, seed)
    ticks = torch.arange(-1.0, most + EXTRA + 1, dtype=torch.float64)
    valid = count >= 0
    mean = float(count[valid].double().mean()) if valid.any() else math.nan
    exact = rows.mean(0)
    return CountDistance(
        **vars(found), mean=mean, exact_mean=float(exact @ ticks), masses=own.mean(0), exact_masses=exact
    )


def _distance(own: Tensor, laws: Tensor, seed: int) -> Distance:
    """One category for each picture, one-hot ``(n, K)``, against a law for each, ``(n, K)``."""
    n = len(own)
    generator = torch.Generator().manual_seed(seed)
    law, seen = laws.mean(0), own.mean(0)
    cumulative = laws.cumsum(1)
    cumulative[:, -1] = 1.0
    floors, spread = [], []
    kinds, index = own.shape[1], own.argmax(1)

    def distances(drawn: Tensor) -> Tensor:
        """Of categories ``(R, n)``."""
        offset = kinds * torch.arange(len(drawn))[:, None]
        counts = torch.bincount((drawn + offset).flatten(), minlength=kinds * len(drawn)).reshape(-1, kinds)
        return 0.5 * (counts / n - law).abs().sum(1)

    for size in [_REPLICATES // 8] * 8:
        u = torch.rand(size, n, 1, generator=generator, dtype=torch.float64)
        floors.append(distances((u > cumulative).sum(-1)))
        spread.append(distances(index[torch.randint(n, (size, n), generator=generator)]))
    return _summary(total_variation(seen, law), torch.cat(floors), torch.cat(spread), n)


def _summary(tv: float, floors: Tensor, spread: Tensor, n: int) -> Distance:
    """From the distances of simulated exact draws and of resampled pictures."""
    floor = float(floors.mean())
    corrected = math.sqrt(max(tv**2 - floor**2, 0.0))
    return Distance(tv, floor, float(floors.quantile(0.95)), corrected, float(spread.std()), n)


def attribute_counts(layouts: Layouts | Parsed, scenes: Scenes, cells: int = 4) -> dict[str, Tensor]:
    """What each scene contributes to each distribution, ``(n, K)`` in float64.

    ``count``: one-hot number of objects (−1 … most + EXTRA); ``shape``, ``color``, ``pair``: objects of each kind;
    ``cell``: objects in each of ``cells × cells`` squares of the canvas between the margins (those beyond count to the
    next square). Sums over scenes, divided by their totals, are the distributions.
    """
    present = layouts.shape >= 0
    shape, color = layouts.shape.clamp(min=0), layouts.color.clamp(min=0)
    step = (scenes.size - 2 * scenes.margin) / cells
    cell = ((layouts.position.double() - scenes.margin) / step).floor().clamp(0, cells - 1).long()

    def tally(index: Tensor, kinds: int) -> Tensor:
        hot = torch.nn.functional.one_hot(torch.where(present, index, kinds), kinds + 1)
        return hot[..., :kinds].sum(1).double()

    return {
        "count": torch.nn.functional.one_hot(layouts.count + 1, scenes.most + EXTRA + 2).double(),
        "shape": tally(shape, len(SHAPES)),
        "color": tally(color, len(COLORS)),
        "pair": tally(shape * len(COLORS) + color, len(SHAPES) * len(COLORS)),
        "cell": tally(cell[..., 1] * cells + cell[..., 0], cells**2),
    }


def attribute_distances(
    parsed: Layouts | Parsed, exact: Layouts | Parsed, scenes: Scenes, cells: int = 4, seed: int = 0
) -> Mapping[str, Distance]:
    """Total variation of the number of objects, of their shapes, colours, pairs and coarse places from exact draws'.

    Attributes are pooled over the objects of all pictures. The law is that of the exact draws, so let these be many
    (50 times as many pictures keep their own scatter at a seventh of the floor); the floor is that of n among them,
    drawn with replacement, so objects of one scene stay together.

    Args:
        parsed: n pictures.
        exact: draws of the law, by :func:`boltzmix.benchmarks.scenes.law.exact_draws` or by rejection.
        scenes: of both.
        cells: of the canvas along each side.
        seed: of the floor.

    Raises:
        ValueError: no object at all.
    """
    generator = torch.Generator().manual_seed(seed)
    own, laws = attribute_counts(parsed, scenes, cells), attribute_counts(exact, scenes, cells)
    n, pool = len(own["count"]), len(laws["count"])
    drawn = torch.randint(pool, (_REPLICATES, n), generator=generator)
    again = torch.randint(n, (_REPLICATES, n), generator=generator)
    found = {}
    for name, counts in own.items():
        if counts.sum() == 0 or laws[name].sum() == 0:
            raise ValueError(f"no object in any picture: the distribution of {name} is not defined")
        law, seen = _pooled(laws[name]), _pooled(counts)
        floors = torch.stack([_pooled(laws[name][rows]) for rows in drawn])
        resampled = torch.stack([_pooled(counts[rows]) for rows in again])
        distances = 0.5 * (floors - law).abs().sum(1)
        spread = 0.5 * (resampled - law).abs().sum(1)
        found[name] = _summary(total_variation(seen, law), distances, spread, n)
    return found


def _pooled(counts: Tensor) -> Tensor:
    total = counts.sum(0)
    return total / total.sum()


def forbidden_share(parsed: Parsed, shape: str | None = None, color: str | None = None) -> Share:
    """Share of pictures with an object of this shape and colour, as NOT should have none; not finite ones count.

    Raises:
        ValueError: neither is given, or an unknown one.
    """
    if shape is None and color is None:
        raise ValueError("say which shape or colour is forbidden")
    wanted = Requests.of({"shape": shape, "color": color})
    hit = parsed.shape >= 0
    if shape is not None:
        hit &= parsed.shape == wanted.shape[0, 0]
    if color is not None:
        hit &= parsed.color == wanted.color[0, 0]
    return share(hit.any(1) | ~parsed.finite)
