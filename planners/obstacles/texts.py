"""Obstacles written as texts, and sequences of both."""

from collections.abc import Sequence
from typing import Any

from boltzmix.planners.obstacles.base import Obstacle
from boltzmix.planners.obstacles.moving import Moving
from boltzmix.planners.obstacles.shapes import Box, Disc, Polygon


def as_obstacles(given: Any) -> tuple[Obstacle, ...]:
    """One obstacle, a text, or several of these, as a tuple.

    Raises:
        TypeError: something that is no obstacle.
    """
    listed = [given] if isinstance(given, (Obstacle, str)) else given
    if not isinstance(listed, Sequence):
        raise TypeError(f"obstacles are a sequence of Disc, Box, Polygon, … or texts, got {type(given).__name__}")
    found = [parse(o) if isinstance(o, str) else o for o in listed]
    wrong = next((o for o in found if not isinstance(o, Obstacle)), None)
    if wrong is not None:
        raise TypeError(
            f"obstacles are Disc, Box, Polygon, DistanceField or Moving, got {type(wrong).__name__}; for a function of "
            "your own, subclass Obstacle and define _distance"
        )
    return tuple(found)


def parse(text: str) -> Obstacle:
    """An obstacle written as ``disc:x,y,r``, ``box:x_low,y_low,x_high,y_high`` or ``polygon:x,y;x,y;x,y``.

    A motion may follow, ``disc:0,0,0.3@0.5,0`` moves with 0.5 m/s along x.

    Raises:
        ValueError: an unknown word, another count of numbers, or what is no number.

    Example:
        >>> parse("disc:1,2,0.5")
        Disc(x=1.0, y=2.0, radius=0.5)
        >>> parse("box:0,0,1,1@0.5,0")
        Moving(Box(x_low=0.0, y_low=0.0, x_high=1.0, y_high=1.0), velocity=(0.5, 0.0))
    """
    if not isinstance(text, str):
        raise TypeError(f"an obstacle is written as a text such as 'disc:1,2,0.5', got {type(text).__name__}")
    shape, at, motion = text.strip().partition("@")
    kind, colon, rest = shape.partition(":")
    kind = kind.strip().lower()
    forms = "disc:x,y,r, box:x_low,y_low,x_high,y_high or polygon:x,y;x,y;x,y"
    if not colon or kind not in ("disc", "box", "polygon"):
        raise ValueError(f"obstacles are written as {forms}, got {text!r}")
    if kind == "polygon":
        found: Obstacle = Polygon(tuple(tuple(_numbers(p, 2, text, "x,y")) for p in rest.split(";")))
    elif kind == "disc":
        found = Disc(*_numbers(rest, 3, text, "x,y,r"))
    else:
        found = Box(*_numbers(rest, 4, text, "x_low,y_low,x_high,y_high"))
    return Moving(found, velocity=_numbers(motion, 2, text, "vx,vy after the @")) if at else found


def _numbers(text: str, count: int, whole: str, form: str) -> list[float]:
    parts = text.split(",")
    try:
        numbers = [float(p) for p in parts]
    except ValueError:
        raise ValueError(f"{whole!r}: expected the numbers {form}, got {text!r}") from None
    if len(numbers) != count:
        raise ValueError(f"{whole!r}: expected {count} numbers {form}, got {len(numbers)}")
    return numbers
