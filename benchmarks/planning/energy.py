"""Planning by energy minimisation on U-maze, with a learned energy of transitions in place of a trajectory prior.

The energy E(s, s'; σ) knows two states a quarter of a second apart, at every noise level, and nothing longer. A plan's
energy is the sum over its steps, with start and goal held; it is lowered by annealed Hamiltonian Monte Carlo down the
noise levels, or by gradient descent down the same levels, and the plan of least energy is followed by PD. Walls appear
in two ways: not at all, so that the learned energy alone keeps plans out of them, or as obstacles, as for the diffusion
planner. The diffusion planner meets the same pairs with the same controller. Success in closed loop forgives much: a
ball that slides along walls arrives, too, so contacts are reported beside it, and the share of plans that keep the
ball's radius from the walls along all of their way.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from boltzmix.benchmarks.planning import methods
from boltzmix.benchmarks.planning.constraints import at_rest
from boltzmix.benchmarks.planning.episodes import Outcome, Pair, run_all
from boltzmix.benchmarks.planning.mazes import REPORTED, hard_pairs, table, tell
from boltzmix.benchmarks.planning.priors import MissingWeights
from boltzmix.benchmarks.planning.problems import clearance
from boltzmix.benchmarks.report import Report
from boltzmix.benchmarks.runner import Settings
from boltzmix.benchmarks.shares import Share, share
from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.kernels.hmc import HMC
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.samplers.smc import Annealed
from boltzmix.planners import PD, RecedingHorizonPolicy
from boltzmix.planners.minimise import Minimise
from boltzmix.planners.planner import Planner
from boltzmix.planners.space import TrajectorySpace
from boltzmix.planners.tasks.transitions import TransitionChain

MAZE = "pointmaze-umaze"
STRIDE = 24
"""Environment steps between the two states of a transition: a chain of few long steps is quickly put in order."""

HORIZON = 12
STEPS = 3000
"""Of training, about half a minute on one core."""

CANDIDATES = 32
FEW = 20
"""Pairs for the two variants that are only shown."""

SHARE = 0.9
"""Of the diffusion planner's success, which is the target."""


@functools.cache
def transition_energy(maze: str, seed: int = 0, steps: int = STEPS) -> Any:
    """E(s, s'; σ) of the maze's recorded transitions, trained by denoising score matching.

    Raises:
        FileNotFoundError: no data were collected here.
    """
    from boltzmix.models import EnergyDiffusion, NoisedTransitionNet, fit
    from boltzmix.models.training.seeding import seeded

    data, scale = methods.recorded(maze), torch.tensor(methods.space_of(maze).scale[:4])

    def stream(n: int, generator: torch.Generator) -> torch.Tensor:
        return (data.windows(2, STRIDE, n=n, generator=generator)[..., :4] / scale).flatten(1)

    def built() -> Any:
        net = NoisedTransitionNet(4, gain=2.0, hidden=96, depth=3)
        return EnergyDiffusion(net, (8,), sigma_data=1.0, sigma_range=(0.02, 5.0), noise=(-1.5, 1.3))

    model = seeded(built, seed)
    fit(model, stream, steps=steps, batch_size=512, lr=3e-3, ema=0.995, seed=seed, progress=False)
    return model.eval().requires_grad_(False)


def chain_of(maze: str, seed: int = 0, steps: int = STEPS, horizon: int = HORIZON) -> TransitionChain:
    """The product of the transition energy over the steps of a plan, as a prior."""
    whole = methods.space_of(maze)
    space = TrajectorySpace(
        horizon, whole.state, dt=whole.dt / whole.stride * STRIDE, stride=STRIDE, loc=whole.loc[:4],
        scale=whole.scale[:4], position=whole.position, bounds=whole.bounds,
    )  # fmt: skip
    return TransitionChain(transition_energy(maze, seed, steps), horizon, 4, trajectory=space.to_dict())


def energy_planner(chain: TransitionChain, environment: Any, sampler: Sampler, *, walls: bool) -> Planner:
    """A planner by energy; without ``walls`` the plan of least energy is the best one, and nothing knows of walls."""
    space = TrajectorySpace.of(chain)
    if walls:
        known: dict[str, Any] = {"obstacles": environment.obstacles, "radius": environment.radius}
        return Planner(chain, space, sampler=sampler, candidates=CANDIDATES, bounds=environment.bounds, **known)

    def least(plans: Any, _: Any) -> Any:
        own = next(chain.parameters())
        with torch.no_grad():
            return chain.energy(space.normalise(torch.as_tensor(plans)).to(own)).double().numpy()

    return Planner(chain, space, sampler=sampler, candidates=CANDIDATES, rank=least)


def annealed(levels: int = 25, sweeps: int = 2) -> Annealed:
    """Hamiltonian Monte Carlo down the noise levels."""
    return Annealed(levels=levels, kernel=HMC(num_leapfrog=3), sweeps=sweeps)


def descent(levels: int = 15) -> Minimise:
    """Gradient descent down noise levels of the same range."""
    return Minimise(steps=20, sigmas=tuple(5.0 * 0.004 ** (k / (levels - 1)) for k in range(levels)), spread=2.0)


def planners(environment: Any, seed: int, steps: int = STEPS) -> dict[str, Callable[[], Any]]:
    """Planners by name, ours by energy first; the last is the diffusion planner."""
    chain = functools.partial(chain_of, MAZE, seed, steps)
    return {
        "transition energy, annealed": lambda: energy_planner(chain(), environment, annealed(), walls=False),
        "transition energy, annealed, walls known": lambda: energy_planner(
            chain(), environment, annealed(), walls=True
        ),
        "transition energy, gradient descent": lambda: energy_planner(chain(), environment, descent(), walls=False),
        "diffusion": lambda: methods.maze_planner(MAZE, environment, seed),
    }


def plans_keep_clear(planner: Any, environment: Any, pairs: list[Pair]) -> Share:
    """The share of pairs whose plan stays as far from every wall as the ball is wide, whatever the planner knows."""
    kept = []
    for pair in pairs:
        result = planner.plan(at_rest(pair.start, planner.space), pair.goal, seed=pair.seed)
        way = torch.as_tensor(result.trajectories[0][:, planner.space.columns(planner.space.position)])
        steps = torch.linspace(0.0, 1.0, 17, dtype=way.dtype)[:, None, None]
        fine = torch.lerp(way[:-1], way[1:], steps).flatten(0, 1)
        kept.append(float(clearance(environment.obstacles, fine.numpy()).min()) >= environment.radius)
    return share(torch.tensor(kept))


def run(report: Report, settings: Settings) -> None:
    """Every planner on the same pairs, once planned and followed by PD; ours against 90 % of diffusion's success."""
    from boltzmix.planners import environments

    try:
        environment = environments.make(MAZE)
    except MissingExtra as error:
        report.skip(MAZE, str(error))
        return
    pairs = hard_pairs(environment, settings.size(100, 3), REPORTED)
    for seed in settings.seeds:
        found: dict[str, Outcome] = {}
        for name, make in planners(environment, seed, settings.size(STEPS, 20)).items():
            compared = name in ("transition energy, annealed", "diffusion")
            if not compared and seed != settings.seeds[0]:
                continue
            title = f"{name} + PD, seed {seed}"
            try:
                policy = RecedingHorizonPolicy(make(), PD(), replan_every=None)
            except (MissingWeights, FileNotFoundError) as error:
                report.skip(f"{MAZE}: {title}", str(error))
                continue
            episodes, seconds = run_all(
                lambda pair, policy=policy: policy, environment, pairs if compared else pairs[:FEW]
            )
            found[name] = tell(report, f"{MAZE}, planned once", title, episodes, None, seconds)
            clear = plans_keep_clear(policy.planner, environment, pairs[:FEW])
            note = f"[{clear.low:.3f}, {clear.high:.3f}], n = {clear.n}; the plan itself, along all of its way"
            report.tell(f"{MAZE}, planned once", f"{title}: plans that keep the ball's radius", clear.rate, note)
            report.keep()
        report.summary += "\n" + "\n".join(table(found))
        ours, diffusion = found.get("transition energy, annealed"), found.get("diffusion")
        if ours is not None and diffusion is not None:
            share = ours.success.rate / diffusion.success.rate if diffusion.success.rate else float("nan")
            report.check(f"{MAZE}, seed {seed}", "success by energy over diffusion's", share, "≥", SHARE)
