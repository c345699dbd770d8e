"""What is compared: ways to plan around obstacles at a number of evaluations, and controllers of mazes."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from boltzmix.benchmarks.planning.episodes import Policy
from boltzmix.benchmarks.planning.priors import prior_of
from boltzmix.benchmarks.runner import Settings
from boltzmix.compose.term import Term
from boltzmix.planners import PD, InverseDynamics, OwnActions, RecedingHorizonPolicy, baselines
from boltzmix.planners.guided import Guidance
from boltzmix.planners.planner import Planner
from boltzmix.planners.rounds import corrected
from boltzmix.planners.space import TrajectorySpace

OURS = "boltzmix"
"""How the names of our own methods begin."""

SPEED, ACCELERATION = 2.0, 6.0
"""Of the motions that geometric planners make of their paths, m/s and m/s²: about those of the data."""

# --------------------------------------------------------------- around obstacles


def constrained(evaluations: int, candidates: int) -> dict[str, Callable[..., Any]]:
    """Methods by name, ours first: functions of (prior, obstacles, radius) that make a planner.

    Each spends about ``evaluations · candidates`` evaluations of the prior: ours on levels with a Langevin correction
    at each, guidance on more levels, best-of-N on more plans of at most ten levels that are blind to obstacles.
    """
    total = evaluations * candidates

    def planner(prior: Term, obstacles: Any, radius: float, **options: Any) -> Planner:
        return Planner(prior, obstacles=obstacles, radius=radius, candidates=candidates, **options)

    def ours(prior: Term, obstacles: Any, radius: float) -> Any:
        levels = max(2, (evaluations + 1) // 2)  # two evaluations a level, one at the last
        return planner(prior, obstacles, radius, sampler=replace(corrected(), steps=levels))

    def guidance(prior: Term, obstacles: Any, radius: float, **options: Any) -> Any:
        return baselines.GuidanceOnly(planner(prior, obstacles, radius), total, **options)

    def explicit(prior: Term, obstacles: Any, radius: float) -> Any:
        return guidance(prior, obstacles, radius, guidance=Guidance(iterations=1))

    def best(prior: Term, obstacles: Any, radius: float) -> Any:
        return baselines.BestOfN(planner(prior, obstacles, radius, steps=min(10, evaluations)), evaluations=total)

    return {
        f"{OURS}, corrected": ours,
        "proximal guidance only": guidance,
        "one-step guidance only": explicit,
        "best of N": best,
    }


# -------------------------------------------------------------------------- mazes

OMPL = {"RRTConnect": 100, "RRTstar": 20, "BITstar": 20}
"""Methods, and at how many pairs they stop: the last two refine until their budget of checks is spent."""
Maker = Callable[[], Policy]


def of_maze(maze: str, environment: Any, settings: Settings) -> list[tuple[str, int, Maker]]:
    """Ours, with every controller, and what the same prior does without correction: name, at how many pairs it stops
    (0: all), and what makes the policy when its turn comes.

    Plans are renewed every third token, from the rest of the last one, and every token where a plan's own actions are
    executed, in open loop. The oracle is always first.
    """
    space = space_of(maze)
    every = 3 * space.stride

    def ours(
        seed: int, controller: Callable[[], Any], wrap: Callable[[Planner], Any] = lambda p: p, often: int = every
    ) -> Maker:
        def make() -> Policy:
            planner = wrap(maze_planner(maze, environment, seed))
            return RecedingHorizonPolicy(planner, controller(), replan_every=often)

        return make

    def learned() -> Any:
        return InverseDynamics(inverse(maze).predict, ahead=AHEAD * environment.dt)

    first = settings.seeds[0]
    found = geometric(maze, environment)[:2]
    found += [(f"{OURS} + PD, seed {seed}", 0, ours(seed, PD)) for seed in settings.seeds]
    found += [
        (f"{OURS} + inverse dynamics, seed {first}", 0, ours(first, learned)),
        (f"{OURS}, its own actions, seed {first}", 50, ours(first, OwnActions, often=space.stride)),
        ("one-step guidance only + PD", 50, ours(first, PD, one_step)),
        ("best of N + PD", 50, ours(first, PD, lambda planner: baselines.BestOfN(planner, planner.candidates))),
    ]
    return found


def one_step(planner: Planner) -> Any:
    """Diffuser's guidance: one explicit gradient step of the tasks at each level."""
    return baselines.GuidanceOnly(planner, guidance=Guidance(iterations=1))


def geometric(maze: str, environment: Any) -> list[tuple[str, int, Maker]]:
    """Planners of paths, which know every wall and plan once; the oracle and the straight line first."""
    space = space_of(maze)
    space = space.resized(3 * space.horizon)
    known: dict[str, Any] = {
        "obstacles": environment.obstacles, "radius": environment.radius, "bounds": environment.bounds,
        "speed": SPEED, "acceleration": ACCELERATION,
    }  # fmt: skip

    def made(kind: Any, **options: Any) -> Maker:
        return lambda: RecedingHorizonPolicy(kind(space, **known, **options), PD(), replan_every=None)

    return [
        ("breadth-first oracle + PD", 0, made(baselines.BreadthFirst)),
        ("straight line + PD", 0, made(baselines.StraightLine)),
        ("gradient planning (CHOMP-like) + PD", 50, made(baselines.GradientPlanner)),
        *((f"OMPL {name} + PD", few, made(baselines.OMPL, method=name)) for name, few in OMPL.items()),
    ]


def others(maze: str, environment: Any) -> list[tuple[str, int, Maker]]:
    """Every baseline without our prior; CEM and MPPI plan again and again and are slow, so they meet fewer pairs."""
    space = space_of(maze)

    def search(kind: Any) -> Maker:
        def make() -> Policy:
            model, limits = stepped(environment, space.stride), {"low": (-1.0, -1.0), "high": (1.0, 1.0)}
            planner = kind(
                space.resized(16), obstacles=environment.obstacles, radius=environment.radius,
                bounds=environment.bounds, dynamics=model, samples=128, iterations=4, **limits,
            )  # fmt: skip
            return RecedingHorizonPolicy(planner, PD(), replan_every=3 * space.stride)

        return make

    return [
        *geometric(maze, environment),
        ("behaviour cloning", 0, lambda: cloned(maze)),
        ("CEM + PD", 10, search(baselines.CEM)),
        ("MPPI + PD", 10, search(baselines.MPPI)),
    ]


def maze_planner(maze: str, environment: Any, seed: int, **options: Any) -> Planner:
    """Our planner for a maze, with the prior of a training seed; its walls are known as obstacles, too."""
    return Planner(
        prior_of(maze, seed), obstacles=environment.obstacles, radius=environment.radius, bounds=environment.bounds,
        **options,
    )  # fmt: skip


def space_of(maze: str) -> TrajectorySpace:
    """The space that a maze's priors are trained in; baselines plan in the same."""
    from boltzmix.models.recipes import RECIPES

    return TrajectorySpace.from_dict(RECIPES[maze].spec["arguments"]["trajectory"])


def stepped(environment: Any, steps: int) -> Callable[..., Any]:
    """The simulator's own integrator over one token: the same action for a number of steps."""

    def model(state: Any, action: Any) -> Any:
        for _ in range(steps):
            state = environment.predict(state, action)
        return state

    return model


AHEAD = 5
"""Environment steps between the two states that the inverse dynamics is asked about."""


def recorded(maze: str) -> Any:
    """The data that a maze's prior was trained on.

    Raises:
        FileNotFoundError: it was not collected here.
    """
    from boltzmix.planners.data.reading import read_npz

    return read_npz(Path("runs/data") / f"{maze}.npz")


@functools.cache
def inverse(maze: str) -> Any:
    """A model of which action leads from a state towards the one :data:`AHEAD` steps later."""
    from boltzmix.models import fit
    from boltzmix.models.dynamics import InverseDynamics as Model

    data = recorded(maze)
    first = torch.arange(len(data.observations) - AHEAD)
    same = torch.searchsorted(data.ends, first, right=True) == torch.searchsorted(data.ends, first + AHEAD, right=True)
    first = first[same]
    torch.manual_seed(0)
    model = Model(data.observations.shape[1], data.actions.shape[1])
    batches = (data.observations[first].float(), data.actions[first].float(), data.observations[first + AHEAD].float())
    fit(model, batches, steps=3000, batch_size=512, seed=0, progress=False)
    return model.eval()


@functools.cache
def cloned(maze: str) -> Any:
    """A chunked policy trained on the same data."""
    data = recorded(maze)
    inputs, targets = baselines.cloning.chunks(data.observations, data.actions, data.goals, data.ends, 8)
    return baselines.BehaviourCloning.fit(
        inputs, targets, chunk=8, steps=3000, seed=0, low=(-1.0, -1.0), high=(1.0, 1.0)
    )
