"""CPU seconds, and pairs of them: whatever is compared is timed in turns, so that a drift of the machine cancels.

On one thread these are the wall-clock seconds of an idle machine, and others' jobs do not count in them.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Rounds = Mapping[str, Sequence[float]]


def now() -> float:
    """CPU seconds of this process so far."""
    return time.process_time()


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """In which order each round goes through the names: forwards and backwards by turns, from the next name each pair.

    Every name stands before every other as often as after it, in any even number of rounds.

    >>> turns(["a", "b"], 3)
    [['a', 'b'], ['b', 'a'], ['b', 'a']]
    """
    orders = []
    for k in range(rounds):
        at = (k // 2) % len(names)
        order = [*names[at:], *names[:at]]
        orders.append(order if k % 2 == 0 else order[::-1])
    return orders


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int) -> list[tuple[float, float]]:
    """CPU seconds of both, run in turns, after one warm-up of each; which goes first alternates."""
    first()
    second()
    found = []
    for k in range(pairs):
        a = b = 0.0
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            clock = now()
            (second if which else first)()
            if which:
                b = now() - clock
            else:
                a = now() - clock
        found.append((a, b))
    return found


def in_turns(jobs: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.02) -> dict[str, list[float]]:
    """CPU seconds of one call of each job, in every round.

    Each job is called once to warm up, and then so often between two looks at the clock that these are about ``least``
    seconds apart.

    Args:
        jobs: functions by name.
        rounds: how often each is timed.
        least: seconds.

    Returns:
        ``rounds`` times for each name.
    """
    calls = {name: _calls(job, least) for name, job in jobs.items()}
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for order in turns(list(jobs), rounds):
        for name in order:
            job, count = jobs[name], calls[name]
            clock = now()
            for _ in range(count):
                job()
            found[name].append((now() - clock) / count)
    return found


def _calls(job: Callable[[], object], least: float) -> int:
    job()
    count = 1
    while True:
        clock = now()
        for _ in range(count):
            job()
        seconds = now() - clock
        if seconds >= least / 2 or count >= 1 << 16:
            return max(1, round(count * least / seconds)) if seconds > least else count
        count *= 2


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios within rounds, and their quartiles: ``(median, lower, upper)``.

    Args:
        above, below: one number for each round, of the two sides.

    Raises:
        ValueError: sides with different numbers of rounds, or fewer than two of them.

    >>> ratio([2.0, 3.0, 40.0], [1.0, 1.0, 10.0])
    (3.0, 2.0, 4.0)
    """
    if len(above) != len(below) or len(above) < 2:
        raise ValueError(f"a ratio takes two rounds or more of both sides, got {len(above)} and {len(below)}")
    within = [a / b for a, b in zip(above, below, strict=True)]
    low, _, high = statistics.quantiles(within, n=4)
    return statistics.median(within), low, high
