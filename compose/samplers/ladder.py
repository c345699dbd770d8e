r"""Levels of a reverse diffusion as another sampler takes them: where steps begin and end, what is carried between.

Most samplers begin a step at the level where the last one ended. Some do not (a list of integer times whose gaps
differ by one from the gap that the update assumes), some end above zero, and a variance-preserving state
:math:`x_t = \alpha_t x_\sigma` that is carried over unchanged is rescaled in the σ coordinate. A :class:`Ladder` writes
all of that down, so that their trajectories can be reproduced number by number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ladder:
    """Steps of a reverse diffusion in the units of the term.

    Args:
        begins: level at which each step evaluates the score. The first may be ``inf``: the state is then unit noise,
            and the first step goes to ``D + σ' · noise`` with the network's estimate D for pure noise.
        ends: level at which each step ends; 0 is the data.
        carry: factor on the state (about ``centre``) after each step, 1 where the next one simply goes on.
        spread: standard deviation of the Gaussian start around ``centre``; None for the term's own coarse form.
        centre: where the data are centred.
        lower: variance of the noise that ``solver="ddpm"`` adds in each step; None for the posterior's,
            σ'² (1 − σ'²/σ²).
        upper: variance that ``variance="large"`` adds, and that learned variances interpolate to; None for the
            forward step's, σ² − σ'².

    Raises:
        ValueError: lengths that differ, or levels and variances that make no sense.

    Example:
        >>> Ladder((10.0, 1.0), (1.0, 0.1)).final
        0.1
    """

    begins: tuple[float, ...]
    ends: tuple[float, ...]
    carry: tuple[float, ...] | None = None
    spread: float | None = None
    centre: float = 0.0
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be walked down."""
        n = len(self.begins)
        for name in ("ends", "carry", "lower", "upper"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise ValueError(f"a ladder of {n} steps has {n} {name}, got {len(values)}")
        first = self.begins[:1]
        rest = (*self.begins[1:], *self.ends)
        if not n or not all(b > 0 for b in (*first, *self.begins[1:])) or not all(_level(v) for v in rest):
            raise ValueError(
                f"a ladder begins at positive levels (only the first may be inf) and ends at finite ones >= 0, got "
                f"begins {_short(self.begins)} and ends {_short(self.ends)}"
            )
        if any(end > begin for begin, end in zip(self.begins, self.ends, strict=True)):
            raise ValueError(f"no step goes up: got begins {_short(self.begins)} and ends {_short(self.ends)}")
        if self.carry is not None and not all(0 < c < math.inf for c in self.carry):
            raise ValueError(f"carry holds positive factors, got {_short(self.carry)}")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ValueError(f"spread is a positive standard deviation, got {self.spread!r}")
        if not math.isfinite(self.centre):
            raise ValueError(f"centre is a finite number, got {self.centre!r}")
        for name in ("lower", "upper"):
            if any(not _level(v) for v in getattr(self, name) or ()):
                raise ValueError(f"{name} holds variances >= 0, got {_short(getattr(self, name))}")

    @classmethod
    def down(cls, levels: Sequence[float]) -> "Ladder":
        """Through decreasing positive levels to the data."""
        return cls(tuple(levels), (*levels[1:], 0.0))

    @property
    def final(self) -> float:
        """The level of the draws."""
        return self.ends[-1]


def _level(value: float) -> bool:
    return 0 <= value < math.inf


def _short(values: Sequence[float]) -> list[float]:
    return [round(v, 6) for v in values[:6]]
