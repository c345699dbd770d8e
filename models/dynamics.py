r"""One-step dynamics and their inverse: Gaussian regressions with an ensemble of networks, as conditional densities.

.. math:: p(y \mid u) = \frac1K \sum_k N\bigl(y;\; y_0(u) + m + w \odot f_k(u),\; w^2 \odot \sigma_k^2\bigr)

:class:`Dynamics`
    p(s' | s, a): y = s', u = (s, a), and :math:`y_0 = s`, so that the network predicts the change of the state.
:class:`InverseDynamics`
    p(a | s, s'): y = a, u = (s, s' − s), :math:`y_0 = 0`: which action leads from s to s'.

m and w are the mean and the standard deviation of y − y₀ in the first batch, and the network sees its inputs in the
same way, so units do not matter. The loss is the mean over the members of −log of each member's own Gaussian. Members
differ by their initial weights alone, which is what makes their disagreement (the epistemic part of the variance)
informative; the spread :math:`\sigma_k` is the noise of the data (the aleatoric part).

Each is a term over the named variables ``state``, ``action`` and ``next`` that integrates to one over y, so
``dynamics.on("s0", "a0", "s1")`` is a factor of a graph, and ``dynamics.given(state=…, action=…)`` is the Gaussian (the
mixture, for an ensemble) of the next state in closed form.

Source: K. Chua, R. Calandra, R. McAllister, S. Levine (2018), Deep reinforcement learning in a handful of trials using
probabilistic dynamics models. B. Lakshminarayanan, A. Pritzel, C. Blundell (2017), Simple and scalable predictive
uncertainty estimation using deep ensembles.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import NonFinite
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable, check_state
from boltzmix.models.nets.ensemble import EnsembleMLP

_LOG_2PI = math.log(2 * math.pi)
_RATE = 10.0  # a spread may fall by orders of magnitude, and Adam moves every parameter by its rate


class GaussianRegression(Term):
    """What :class:`Dynamics` and :class:`InverseDynamics` share: units, members, likelihood, draws.

    A subclass names its inputs and its output and says what the network is shown (:meth:`_inputs`) and what is added to
    what it says (:meth:`_origin`).
    """

    calibrated = True
    inputs: tuple[str, ...]
    output: str
    prepared: Tensor
    input_loc: Tensor
    input_scale: Tensor
    output_loc: Tensor
    output_scale: Tensor

    def _build(
        self, sizes: Mapping[str, int], net: nn.Module | None, members: int, hidden: int, depth: int, noise: str,
        floor: float,
    ) -> None:  # fmt: skip
        """Check the numbers, take or build the network, and hold the units, unknown until the first batch."""
        for name, size in sizes.items():
            least = 0 if name == "action" and self.output != "action" else 1
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise ValueError(f"the size of {name} is an int >= {least}, got {size!r}")
        if noise not in ("constant", "network"):
            raise ValueError(f"noise is 'constant' (one spread for all inputs) or 'network', got {noise!r}")
        if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 < floor < math.inf:
            raise ValueError(f"floor is the least standard deviation, a number > 0 in units of w, got {floor!r}")
        self.sizes = {name: size for name, size in sizes.items() if size}
        self.variables = {name: Variable((size,)) for name, size in self.sizes.items()}
        self.normalized_over = frozenset({self.output})
        self.conditions = frozenset(self.sizes) - {self.output}
        self.inputs = tuple(name for name in self.sizes if name != self.output)
        self.noise, self.floor = noise, float(floor)
        width, out = sum(self.sizes[name] for name in self.inputs), self.sizes[self.output]
        wanted = out if noise == "constant" else 2 * out
        self.net = EnsembleMLP(width, wanted, members, hidden, depth) if net is None else net
        if isinstance(self.net, EnsembleMLP) and (self.net.dim, self.net.out) != (width, wanted):
            raise ValueError(
                f"{type(self).__name__} needs a network from {width} inputs to {wanted} outputs, got one from "
                f"{self.net.dim} to {self.net.out}"
            )
        self.members = int(getattr(self.net, "members", members))
        like = next(p for p in self.net.parameters() if p.is_floating_point())
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.log_noise = nn.Parameter(torch.zeros(self.members, out, **options)) if noise == "constant" else None
        for name, size in (("input", width), ("output", out)):
            self.register_buffer(f"{name}_loc", torch.zeros(size, **options))
            self.register_buffer(f"{name}_scale", torch.ones(size, **options))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool, device=like.device))

    # ---------------------------------------------------------------- to be said

    def _inputs(self, parts: Mapping[str, Tensor]) -> Tensor:
        """What the network is shown, ``(N, width)``."""
        raise NotImplementedError

    def _origin(self, parts: Mapping[str, Tensor]) -> Tensor | float:
        """y₀, ``(N, out)`` or a number."""
        raise NotImplementedError

    # ------------------------------------------------------------------ prediction

    def moments(self, **parts: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of every member, ``(K, N, out)`` each, in the user's units.

        Args:
            parts: the inputs by name, ``(N, size)`` each.
        """
        self._check_parts(parts)
        return self._moments(parts)

    def _moments(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        units = (self._inputs(parts) - self.input_loc) / self.input_scale
        out = self.net(units)
        if out.ndim == 2:
            out = out[None]
        size = self.sizes[self.output]
        if self.log_noise is None:
            log = out[..., size:]
        else:
            log = _RATE * self.log_noise[:, None].expand(*out.shape[:-1], size)
        mean = self.output_loc + self.output_scale * out[..., :size]
        spread = self.output_scale * (self.floor**2 + (2 * log).exp()).sqrt()
        return self._origin(parts) + mean, spread

    def disagreement(self, **parts: Tensor) -> Tensor:
        """Standard deviation of the members' means, root mean square over the coordinates in units of w, ``(N,)``."""
        means, _ = self.moments(**parts)
        return (means.var(0, correction=0) / self.output_scale**2).mean(-1).sqrt()

    def draw(self, generator: torch.Generator | None = None, **parts: Tensor) -> Tensor:
        """One draw of y for each row: a member at random, then its Gaussian, ``(N, out)``."""
        with torch.no_grad():
            means, spreads = self.moments(**parts)
            n = means.shape[1]
            noise = torch.randn(means.shape[1:], generator=generator, dtype=means.dtype, device=means.device)
            which = torch.randint(self.members, (n,), generator=generator, device=means.device)
            rows = torch.arange(n, device=means.device)
            return means[which, rows] + spreads[which, rows] * noise

    def _mean(self, parts: Mapping[str, Tensor]) -> Tensor:
        self._check_parts(parts)
        return self._moments(parts)[0].mean(0)

    # ------------------------------------------------------------------------ term

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        """−log of the mixture over the members."""
        self._match(x)
        logs = self._log_members(x)
        return math.log(self.members) - logs.logsumexp(0)

    def _log_members(self, x: Mapping[str, Tensor]) -> Tensor:
        """log of each member's density of y, ``(K, N)``."""
        means, spreads = self._moments({name: x[name] for name in self.inputs})
        gap = (x[self.output] - means) / spreads
        return -(0.5 * gap.square() + spreads.log() + 0.5 * _LOG_2PI).sum(-1)

    def _given(self, **condition: object) -> Term:
        missing = sorted(set(self.inputs) - set(condition))
        if missing:
            raise ValueError(
                f"{self.name()} is the density of {self.output} given {list(self.inputs)}; also give {missing}"
            )
        like = self.output_loc
        parts = {name: torch.as_tensor(condition[name], dtype=like.dtype, device=like.device) for name in self.inputs}
        for name, value in parts.items():
            if value.shape != (self.sizes[name],):
                raise ValueError(f"{name} is one vector ({self.sizes[name]},), got {tuple(value.shape)}")
        with torch.no_grad():
            means, spreads = self._moments({name: value[None] for name, value in parts.items()})
        if self.members == 1:
            return Gaussian(means[0, 0], spreads[0, 0] ** 2)
        return GaussianMixture(means[:, 0], spreads[:, 0] ** 2)

    def _rows(self) -> int:
        return self.members

    def key(self) -> Hashable:
        """The network."""
        return (type(self).__name__, id(self.net))

    def name(self) -> str:
        """The class and the number of members."""
        return type(self).__name__ + (f"(members={self.members})" if self.members > 1 else "")

    # -------------------------------------------------------------------- training

    def prepare(self, batch: Any, generator: torch.Generator) -> None:
        """Take the units from a batch, once; the more rows, the better.

        Raises:
            NonFinite: data that are not finite.
            ValueError: an input or output coordinate that does not vary.
        """
        if bool(self.prepared):
            return
        x = self._batch(batch)
        with torch.no_grad():
            inputs = self._inputs(x)
            change = x[self.output] - self._origin(x)
            for what, values in (("input", inputs), ("output", change)):
                if not bool(torch.isfinite(values).all()):
                    raise NonFinite(f"{self.name()} is fitted to data with NaN or infinite values; remove those rows")
                scale = values.std(0, correction=0)
                if still := (scale <= 0).nonzero()[:, 0].tolist():
                    raise ValueError(
                        f"{what} columns {still[:8]} of {self.name()} do not vary in the first batch of {len(values)}; "
                        "leave them out, or use a larger batch"
                    )
                getattr(self, f"{what}_loc").copy_(values.mean(0))
                getattr(self, f"{what}_scale").copy_(scale)
            self.prepared.fill_(True)

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean of −log of each member's Gaussian for each coordinate; ``generator`` is not used.

        Args:
            batch: the variables in their order, ``(state, action, next)`` or ``(state, next)``, ``(N, size)`` each.
        """
        self.prepare(batch, generator)
        x = self._batch(batch)
        self._match(x)
        return -self._log_members(x).mean() / self.sizes[self.output]

    def _batch(self, batch: Any) -> dict[str, Tensor]:
        if isinstance(batch, Mapping):
            x = dict(batch)
        elif isinstance(batch, Tensor) or len(batch) != len(self.sizes):
            what = "one tensor" if isinstance(batch, Tensor) else f"{len(batch)} tensors"
            raise ValueError(f"a batch of {self.name()} is ({', '.join(self.sizes)}), got {what}")
        else:
            x = dict(zip(self.sizes, batch, strict=True))
        check_state(x, self.variables, f"the batch of {self.name()}")
        return x

    # --------------------------------------------------------------------- helpers

    def _check_parts(self, parts: Mapping[str, Tensor]) -> None:
        check_state(dict(parts), {name: self.variables[name] for name in self.inputs}, self.name())  # pyright: ignore[reportIndexIssue]
        self._match(parts)

    def _match(self, x: Mapping[str, Tensor]) -> None:
        own = self.output_loc
        for name, value in x.items():
            if value.dtype != own.dtype or value.device != own.device:
                raise TypeError(
                    f"{self.name()} holds {own.dtype} weights on {own.device} and got {name} as {value.dtype} on "
                    f"{value.device}; convert it, or the model with .to({value.dtype})"
                )


class Dynamics(GaussianRegression):
    r"""One step of the environment, :math:`p(s' \mid s, a)` (see the module's page).

    Args:
        state: S, number of state coordinates.
        action: A, number of action coordinates; 0 for dynamics without actions, p(s' | s).
        net: ``net(u) -> (K, N, S)`` (twice as many outputs for ``noise="network"``); None builds an
            :class:`~boltzmix.models.nets.EnsembleMLP`.
        members: K, networks in the ensemble.
        hidden, depth: of the network that is built for you.
        noise: ``"constant"``: one spread for each coordinate; ``"network"``: the network says it for each input.
        floor: least standard deviation, in units of the change's standard deviation: deterministic dynamics would
            otherwise drive the spread to zero and the likelihood to infinity.

    Raises:
        ValueError: sizes and numbers out of range, or batches of another form.
        TypeError: values in another dtype than the weights.

    Example:
        >>> import torch
        >>> model = Dynamics(4, 2, members=3, hidden=8)
        >>> model.predict(torch.zeros(5, 4), torch.zeros(5, 2)).shape
        torch.Size([5, 4])
        >>> model.rollout(torch.zeros(5, 4), torch.zeros(5, 7, 2)).shape
        torch.Size([5, 8, 4])
    """

    output = "next"

    def __init__(
        self,
        state: int,
        action: int = 0,
        *,
        net: nn.Module | None = None,
        members: int = 1,
        hidden: int = 64,
        depth: int = 2,
        noise: Literal["constant", "network"] = "constant",
        floor: float = 1e-3,
    ) -> None:
        """Check the sizes and take, or build, the network."""
        super().__init__()
        self._build({"state": state, "action": action, "next": state}, net, members, hidden, depth, noise, floor)

    def _inputs(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([parts[name] for name in self.inputs], -1)

    def _origin(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["state"]

    def predict(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """E[s' | s, a], the mean over the members, ``(N, S)``."""
        return self._mean({"state": state} | ({} if action is None else {"action": action}))

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """Predicted states under a sequence of actions, the first included: ``(N, S), (N, T, A) -> (N, T + 1, S)``."""
        if actions.ndim != 3 or len(actions) != len(state):
            raise ValueError(f"actions are (N, T, A) for N = {len(state)} states, got {tuple(actions.shape)}")
        states = [state]
        for action in actions.unbind(1):
            states.append(self.predict(states[-1], action))
        return torch.stack(states, 1)


class InverseDynamics(GaussianRegression):
    r"""The action between two states, :math:`p(a \mid s, s')` (see the module's page).

    The arguments are those of :class:`Dynamics`. Where several actions lead from s to s' the prediction is their mean.

    Example:
        >>> import torch
        >>> model = InverseDynamics(4, 2, hidden=8)
        >>> model.predict(torch.zeros(5, 4), torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    output = "action"

    def __init__(
        self,
        state: int,
        action: int,
        *,
        net: nn.Module | None = None,
        members: int = 1,
        hidden: int = 64,
        depth: int = 2,
        noise: Literal["constant", "network"] = "constant",
        floor: float = 1e-3,
    ) -> None:
        """Check the sizes and take, or build, the network."""
        super().__init__()
        self._build({"state": state, "action": action, "next": state}, net, members, hidden, depth, noise, floor)

    def _inputs(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([parts["state"], parts["next"] - parts["state"]], -1)

    def _origin(self, parts: Mapping[str, Tensor]) -> float:
        return 0.0

    def predict(self, state: Tensor, target: Tensor) -> Tensor:
        """E[a | s, s'], the mean over the members, ``(N, A)``."""
        return self._mean({"state": state, "next": target})


def transitions(states: Tensor, actions: Tensor | None = None) -> tuple[Tensor, ...]:
    """Trajectories as the batches of this page: ``(N, T, S)`` and ``(N, T or T − 1, A)`` to ``(state, action, next)``.

    Example:
        >>> import torch
        >>> [t.shape for t in transitions(torch.zeros(3, 5, 4), torch.zeros(3, 5, 2))]
        [torch.Size([12, 4]), torch.Size([12, 2]), torch.Size([12, 4])]
    """
    if states.ndim != 3 or states.shape[1] < 2:
        raise ValueError(f"states are (N, T, S) with T >= 2, got {tuple(states.shape)}")
    steps = states.shape[1] - 1
    ends: Sequence[Tensor] = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)
    if actions is None:
        return ends[0], ends[1]
    if actions.ndim != 3 or actions.shape[0] != len(states) or actions.shape[1] not in (steps, steps + 1):
        raise ValueError(
            f"actions are (N, T, A) or (N, T - 1, A) for states {tuple(states.shape)}, got {tuple(actions.shape)}"
        )
    return ends[0], actions[:, :steps].flatten(0, 1), ends[1]
