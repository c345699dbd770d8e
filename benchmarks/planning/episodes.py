"""Episodes in a simulated environment: the same pairs and seeds for every policy, and what each of them came to.

An episode succeeds when the environment says that the goal is reached within its limit of steps, and ends there. The
way that was really gone is judged apart from that: its length, and its clearance to walls and obstacles along every
segment.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from boltzmix.benchmarks.planning.problems import clearance
from boltzmix.benchmarks.shares import Share, share

_TOUCH = 1e-3  # metres that a body may sink into a wall before it counts: the simulator's contacts are soft


class Policy(Protocol):
    """What acts: told to begin, then asked at every step."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new episode; ``options`` holds its goal."""

    def act(self, observation: Any) -> np.ndarray:
        """The action, in the environment's units."""
        ...


@dataclass(frozen=True)
class Pair:
    """Where an episode starts and where it should end; its seed is that of the environment and of the policy."""

    start: tuple[float, float]
    goal: tuple[float, float]
    seed: int


@dataclass
class Episode:
    """What became of one episode.

    Attributes:
        success: the goal was reached in time.
        steps: of the environment.
        length: of the way that was gone, in the environment's units.
        clearance: the least along that way, less the body's radius; negative means contact.
        latencies: seconds of every replan.
        evaluations: of the prior, over all replans.
        path: positions ``(steps + 1, 2)``.
        error: why the policy gave up; empty where it did not.
    """

    success: bool
    steps: int
    length: float
    clearance: float
    latencies: list[float] = field(default_factory=list)
    evaluations: float = 0.0
    path: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    error: str = ""

    @property
    def contact(self) -> bool:
        """Whether the body sank into a wall or an obstacle."""
        return self.clearance < -_TOUCH

    def as_json(self) -> dict[str, Any]:
        """Everything but the way itself."""
        found = asdict(self)
        del found["path"]
        return found


def run_episode(environment: Any, policy: Policy, pair: Pair, *, obstacles: Sequence[Any] = ()) -> Episode:
    """One episode from ``pair.start`` to ``pair.goal``, until the goal is reached or the environment ends it.

    A policy that refuses or fails with a ValueError has lost the episode, and its words are kept.
    """
    if not math.isfinite(environment.max_steps):
        raise ValueError("an episode needs an end: the environment has no limit of steps, make it with max_steps=")
    observation = environment.reset(pair.start, pair.goal, pair.seed)
    path = [_position(environment)]
    error, success = "", False
    try:
        policy.reset(seed=pair.seed, options={"goal": np.asarray(pair.goal)})
        while True:
            observation, _, terminated, truncated, info = environment.step(policy.act(observation))
            path.append(_position(environment))
            success = bool(info["success"])
            if success or terminated or truncated:
                break
    except ValueError as failure:
        error = f"{type(failure).__name__}: {failure}"
    gone = np.asarray(path)
    latencies, evaluations = spent(policy)
    return Episode(
        success, len(gone) - 1, way_length(gone), way_clearance(environment, gone, obstacles), latencies, evaluations,
        gone, error,
    )  # fmt: skip


def _position(environment: Any) -> np.ndarray:
    return np.asarray(environment.state, dtype=float)[:2].copy()


def spent(policy: Any) -> tuple[list[float], float]:
    """Seconds of every replan of the last episode, and the evaluations of all of them."""
    records = getattr(policy, "records", ())
    return [float(r.seconds) for r in records], float(sum(r.evaluations for r in records))


def way_length(path: np.ndarray) -> float:
    """Sum of the lengths of a path's segments."""
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def way_clearance(environment: Any, path: np.ndarray, obstacles: Sequence[Any] = ()) -> float:
    """The least distance of the path's segments to walls and obstacles, less the body's radius."""
    fine = np.concatenate([path[:1], *(path[:-1] + s * np.diff(path, axis=0) for s in (0.25, 0.5, 0.75)), path[1:]])
    steps = np.arange(len(path) - 1)
    when = environment.dt * np.concatenate([[0.0], *(steps + s for s in (0.25, 0.5, 0.75)), steps + 1.0])
    return float(clearance([*environment.obstacles, *obstacles], fine, when).min()) - float(environment.radius)


@dataclass(frozen=True)
class Outcome:
    """A method's episodes, summed up.

    Attributes:
        success: share of successes with its interval.
        cost: median over pairs where both succeeded of length over the oracle's; NaN where there is none.
        contacts: share of episodes in which the body sank into something.
        p50, p95: of the seconds of a replan; NaN for methods that plan once and are not timed.
        replans: mean number for each episode.
        evaluations: mean number for each replan.
        steps: median of the successful episodes.
        errors: distinct reasons why episodes ended early.
    """

    success: Share
    cost: float
    contacts: float
    p50: float
    p95: float
    replans: float
    evaluations: float
    steps: float
    errors: tuple[str, ...]


def outcome(episodes: Sequence[Episode], oracle: Sequence[Episode] | None = None) -> Outcome:
    """Sum up; ``oracle`` holds the oracle's episodes for the same pairs, in the same order.

    Raises:
        ValueError: no episodes, or other pairs.
    """
    if oracle is not None and len(oracle) != len(episodes):
        raise ValueError(f"paired comparison: {len(episodes)} episodes beside {len(oracle)} of the oracle")
    ratios = [a.length / b.length for a, b in zip(episodes, oracle or (), strict=False) if a.success and b.success]
    latencies = [t for e in episodes for t in e.latencies]
    replans = sum(len(e.latencies) for e in episodes)
    done = [e.steps for e in episodes if e.success]
    return Outcome(
        share(torch.tensor([e.success for e in episodes])),
        statistics.median(ratios) if ratios else math.nan,
        statistics.fmean(e.contact for e in episodes),
        float(np.quantile(latencies, 0.5)) if latencies else math.nan,
        float(np.quantile(latencies, 0.95)) if latencies else math.nan,
        replans / len(episodes),
        sum(e.evaluations for e in episodes) / replans if replans else math.nan,
        statistics.median(done) if done else math.nan,
        tuple(sorted({e.error for e in episodes if e.error})),
    )


def run_all(
    make: Callable[[Pair], Policy], environment: Any, pairs: Sequence[Pair], obstacles: Sequence[Any] = ()
) -> tuple[list[Episode], float]:
    """An episode for each pair, and the CPU seconds of all of them."""
    clock = time.process_time()
    episodes = [run_episode(environment, make(pair), pair, obstacles=obstacles) for pair in pairs]
    return episodes, time.process_time() - clock
