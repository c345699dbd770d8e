r"""Why chains disagree.

An R-hat above 1.01 has three usual causes, which look different. With :math:`\mu_c` the mean of chain c and
:math:`s_c` its standard error from its own effective size, both of rank-normalised draws:

* *separate modes*: chains are stationary, :math:`|\mu_{c,1} - \mu_{c,2}| < 3 \cdot 2 s_c` between the halves of the
  median chain, but apart, :math:`\operatorname{var}_c \mu_c > 20\, \overline{s_c^2}`;
* *a warm-up that was too short*: the halves of the median chain are apart by the errors of the second one,
  :math:`|\mu_{c,1} - \mu_{c,2}| > 3 \sqrt{2}\, s_{c,2}`, and these second halves agree far better than the whole; or
  all chains still move in one direction;
* *slow mixing*: what remains. Of 16 chains or more, which are short by design, it is reported from an R-hat of 1.1 on,
  where a chain is worth some ten draws, and below it only when all chains together have too small a size.

The limit of 1.01 is raised for short runs to what independent draws exceed once in 10,000 runs, whatever the number of
chains, draws and coordinates.
"""

import itertools
import math

import torch
from torch import Tensor

from boltzmix.compose.diagnostics import normal_scores, rhat, size_of_each

#: the largest R-hat of chains that agree; from how many chains on a larger one will do, and which
RHAT, MANY, RHAT_OF_MANY = 1.01, 16, 1.1


def rhat_limit(chains: int, draws: int, coordinates: int = 1, rate: float = 1e-4) -> float:
    """What the largest R-hat of independent draws exceeds with probability ``rate`` at most, nearly.

    B / W is then F-distributed; the limit takes a χ² quantile above and one below (Wilson and Hilferty, 1931), and
    counts bulk and folded R-hat of every coordinate as a test.

    Example:
        >>> rhat_limit(4, 1000) < 1.01 < rhat_limit(4, 100)
        True
    """
    m, n = 2 * chains, draws // 2
    z = float(torch.special.ndtri(torch.tensor(1 - rate / (2 * coordinates), dtype=torch.float64)))

    def quantile(dof: int, z: float) -> float:
        return (1 - 2 / (9 * dof) + z * math.sqrt(2 / (9 * dof))) ** 3

    within = max(quantile(m * (n - 1), -z), 0.02) if n > 1 else 0.02
    return math.sqrt((n - 1) / n + quantile(m - 1, z) / within / n)


def cause_of_disagreement(c: Tensor) -> tuple[str, str]:
    """Why chains ``(chains, draws)`` of one coordinate disagree, and the evidence in words."""
    chains, draws = c.shape
    whole = rhat(c)
    folds = chains > 1 and float(rhat(c, "folded")) > float(rhat(c, "z_scale"))
    z = normal_scores(c[None])[0]
    if folds:
        z = normal_scores(z.abs()[None])[0]
    half = draws // 2
    early, late = z[:, :half].mean(1), z[:, draws - half :].mean(1)
    sizes = size_of_each(z)
    errors = z.var(1) / sizes
    if chains > 1 and float(sizes.median()) >= 20:
        apart = float(z.mean(1).var()) > 20 * float(errors.mean())
        stationary = float(((early - late).abs() / (2 * errors.sqrt())).median()) < 3
        if apart and stationary:
            return "multimodal", _groups(c, z, errors, folds)
    if half >= 8:
        tail = float(rhat(c[:, half:])) ** 2 - 1
        settled = z[:, draws - half :].var(1) / size_of_each(z[:, draws - half :])
        moved = float(((early - late).abs() / (2 * settled).sqrt()).median()) > 3
        if moved and tail < (0.25 if chains > 1 else 0.1) * (float(whole) ** 2 - 1):
            return "short-warmup", f"their second halves agree (R-hat {math.sqrt(max(tail + 1, 0)):.3f})"
    if chains > 2:
        move = late - early
        t = float(move.mean() / (move.std() / math.sqrt(chains)))
        if normal_of_t(t, chains - 1) > 2.6:
            first, last = float(c[:, :half].mean()), float(c[:, half:].mean())
            return "short-warmup", f"all of them still move one way, from {first:.3g} to {last:.3g} in the mean"
    return "slow-mixing", ""


def normal_of_t(t: float, dof: int) -> float:
    """|t| as the normal deviate of the same tail probability (Wallace, 1959)."""
    return math.sqrt(dof * math.log1p(t * t / dof)) * (8 * dof + 1) / (8 * dof + 3)


def _groups(c: Tensor, z: Tensor, errors: Tensor, folds: bool) -> str:
    """Chains by where they are: "3 around -20.1, 1 around 19.8", or by how far they spread."""
    order = z.mean(1).argsort()
    means, spread = z.mean(1)[order], max(6 * float(errors.mean().sqrt()), 0.25 * float(z.std(1).mean()))
    cuts = [0, *(k + 1 for k in range(len(means) - 1) if float(means[k + 1] - means[k]) > spread), len(means)]
    groups = [order[a:b] for a, b in itertools.pairwise(cuts)]
    groups.sort(key=len, reverse=True)
    said = [
        f"{len(g)} spread by {float(c[g].std()):.3g}" if folds else f"{len(g)} around {float(c[g].mean()):.3g}"
        for g in groups[:4]
    ]
    more = sum(len(g) for g in groups[4:])
    return ", ".join(said) + (f", {more} elsewhere" if more else "")
