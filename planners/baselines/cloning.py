"""Behaviour cloning: a network that repeats what the data's controller did, a chunk of actions at a time.

The policy is a multilayer perceptron from an observation o (state and goal, standardised) to the next K actions,
trained by mean squared error on demonstrations,

    min_θ  E |f_θ(o_t) − (a_t, …, a_{t+K−1})|²,

and executed ``execute`` actions at a time before it looks again. There is no planning in it, no obstacle can be added,
and what it never saw it does not know.

Pomerleau (1988), "ALVINN: An autonomous land vehicle in a neural network"; chunks: Zhao et al. (2023), "Learning
fine-grained bimanual manipulation with low-cost hardware".
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from boltzmix.compose.sample import as_generator

if TYPE_CHECKING:
    import numpy as np

_GOAL_KEYS = ("observation", "desired_goal")


class BehaviourCloning:
    """A chunked policy with ``reset`` and ``act``; :meth:`fit` makes one from arrays.

    Args:
        net: from standardised observations ``(N, I)`` to standardised chunks ``(N, K · A)``.
        statistics: mean and scale of observations and actions.
        chunk: K.
        execute: actions taken before the network is asked again, between 1 and K.
        low, high: ``(A,)`` limits that actions are held to, or None.

    Attributes:
        evaluations: calls of the network since :meth:`reset`.
    """

    def __init__(
        self,
        net: nn.Module,
        statistics: Mapping[str, Tensor],
        chunk: int,
        *,
        execute: int | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        """Hold the network and its units."""
        execute = chunk if execute is None else execute
        if not 1 <= execute <= chunk:
            raise ValueError(f"execute is between 1 and chunk ({chunk}), got {execute}")
        if (low is None) != (high is None):
            raise ValueError("give both low= and high=, or neither for actions without limits")
        self.net, self.statistics, self.chunk, self.execute = net.eval(), dict(statistics), chunk, execute
        self.low = None if low is None else torch.tensor(list(low))
        self.high = None if high is None else torch.tensor(list(high))
        self.losses: list[float] = []
        self._queue: list[Tensor] = []
        self.evaluations = 0

    @classmethod
    def fit(
        cls,
        observations: Any,
        actions: Any,
        *,
        chunk: int = 8,
        execute: int | None = None,
        width: int = 256,
        layers: int = 3,
        steps: int = 3000,
        batch: int = 512,
        learning_rate: float = 1e-3,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        seed: int | torch.Generator | None = None,
    ) -> "BehaviourCloning":
        """Train on demonstrations.

        Args:
            observations: ``(M, I)``, goals among the columns, in the units that :meth:`act` will see.
            actions: ``(M, K, A)`` chunks, of :func:`chunks` for instance.
            chunk: K, must be that of ``actions``.
            execute, low, high: see the class.
            width, layers: of the network.
            steps, batch, learning_rate: of Adam, with a cosine decay to zero.
            seed: of weights and batches.

        Raises:
            ValueError: shapes that do not fit, values that are not finite.
        """
        inputs = torch.as_tensor(observations, dtype=torch.get_default_dtype())
        targets = torch.as_tensor(actions, dtype=inputs.dtype)
        if inputs.ndim != 2 or targets.ndim != 3 or len(inputs) != len(targets) or targets.shape[1] != chunk:
            raise ValueError(
                f"observations are (M, I) and actions (M, {chunk}, A), got {tuple(inputs.shape)} and "
                f"{tuple(targets.shape)}; chunks() makes them"
            )
        if not (bool(inputs.isfinite().all()) and bool(targets.isfinite().all())):
            raise ValueError("observations and actions are finite numbers; remove the rows that are not")
        generator, _ = as_generator(seed, "cpu")
        statistics = {
            "mean": inputs.mean(0),
            "scale": _scale(inputs),
            "action_mean": targets.mean((0, 1)),
            "action_scale": _scale(targets.flatten(0, 1)),
        }
        sizes = [inputs.shape[1], *[width] * layers, targets[0].numel()]
        net = nn.Sequential()
        for before, after in itertools.pairwise(sizes):
            linear = nn.Linear(before, after)
            bound = before**-0.5
            with torch.no_grad():
                for parameter in linear.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
            net.extend([linear, nn.SiLU()])
        del net[-1]
        inputs = (inputs - statistics["mean"]) / statistics["scale"]
        targets = ((targets - statistics["action_mean"]) / statistics["action_scale"]).flatten(1)
        optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        losses = []
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(inputs), (min(batch, len(inputs)),), generator=generator)
                loss = (net(inputs[rows]) - targets[rows]).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
        policy = cls(net, statistics, chunk, execute=execute, low=low, high=high)
        policy.losses = losses
        return policy

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Forget the chunk; the policy is deterministic, so the seed changes nothing."""
        self._queue, self.evaluations = [], 0

    @torch.no_grad()
    def chunk_for(self, observation: Any) -> Tensor:
        """The next K actions ``(K, A)`` in physical units, within the limits."""
        vector = flatten_observation(observation).to(self.statistics["mean"])
        if vector.shape != self.statistics["mean"].shape:
            raise ValueError(
                f"the policy was trained on observations of {len(self.statistics['mean'])} numbers (state and goal), "
                f"got {tuple(vector.shape)}"
            )
        if not bool(vector.isfinite().all()):
            raise ValueError(f"the observation is not finite: {vector.tolist()}")
        out = self.net(((vector - self.statistics["mean"]) / self.statistics["scale"])[None])[0]
        out = out.reshape(self.chunk, -1) * self.statistics["action_scale"] + self.statistics["action_mean"]
        self.evaluations += 1
        if self.low is None or self.high is None:
            return out
        return out.clamp(self.low.to(out), self.high.to(out))

    def act(self, observation: Any) -> "np.ndarray":
        """The next action ``(A,)``."""
        if not self._queue:
            self._queue = list(self.chunk_for(observation)[: self.execute])
        return self._queue.pop(0).numpy()


def flatten_observation(observation: Any) -> Tensor:
    """A vector as it is; of a gymnasium goal dictionary ``observation`` and then ``desired_goal``."""
    if isinstance(observation, Mapping):
        missing = [key for key in _GOAL_KEYS if key not in observation]
        if missing:
            raise ValueError(f"a goal observation has the keys {_GOAL_KEYS}, missing {missing}")
        return torch.cat([torch.as_tensor(observation[key]).double().flatten() for key in _GOAL_KEYS])
    return torch.as_tensor(observation).double()


def chunks(states: Any, actions: Any, goals: Any, ends: Any, chunk: int) -> tuple[Tensor, Tensor]:
    """Pairs for :meth:`BehaviourCloning.fit` from recorded episodes, laid end to end.

    Args:
        states: ``(T, S)``; action t was taken in state t.
        actions: ``(T, A)``.
        goals: ``(T, G)``, what the controller was heading for at t.
        ends: indices one past the last step of each episode, increasing, the last one T.
        chunk: K. Chunks do not reach over the end of an episode: its last action is repeated.

    Returns:
        observations ``(T, S + G)`` and chunks ``(T, K, A)``.
    """
    states, actions, goals = (
        torch.as_tensor(part, dtype=torch.get_default_dtype()) for part in (states, actions, goals)
    )
    bounds = torch.as_tensor(ends).long()
    total = len(actions)
    if len(states) != total or len(goals) != total or not len(bounds) or int(bounds[-1]) != total:
        raise ValueError(
            f"states, actions and goals have one row per step and the last end is their number, got {len(states)}, "
            f"{total}, {len(goals)} rows and ends {bounds.tolist()[-1:]}"
        )
    if chunk < 1 or bool((bounds.diff() <= 0).any()) or int(bounds[0]) < 1:
        raise ValueError("chunk is at least 1 and ends increase")
    step = torch.arange(total)
    last = bounds[torch.searchsorted(bounds, step, right=True)] - 1
    index = torch.minimum(step[:, None] + torch.arange(chunk), last[:, None])
    return torch.cat([states, goals], dim=1), actions[index]


def _scale(rows: Tensor) -> Tensor:
    """Standard deviations, 1 for a column that is constant."""
    deviation = rows.std(0)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))
