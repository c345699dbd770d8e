r"""Energies of transitions, :math:`E(s, a, s')`: what a planner that minimises energy adds up along a trajectory.

The variable is the vector :math:`x = (s, a, s')` (or :math:`(s, s')`). Two densities can be meant.

*Joint*, :math:`p(s, a, s') \propto e^{-f(x)} q(x)` with a Gaussian q that is fitted to the data: the energy of an
:class:`~boltzmix.models.EnergyModel`, trained by any of its objectives. It is low where transitions have been seen,
and high inside walls, where none has.

*Conditional*, :math:`p(s' \mid s, a) \propto e^{-f(x)} q(s' \mid s, a)` with learned
:class:`~boltzmix.models.Dynamics` q, trained by noise-contrastive estimation with noise for s' alone: each datum
:math:`(s, a, s')` is told from :math:`(s, a, \tilde s')` with :math:`\tilde s' \sim q(\cdot \mid s, a)`. The minimum
over all functions is the *normalised* conditional, constant included, for every (s, a) at once. It keeps what a
Gaussian cannot say (two outcomes, walls that stop a motion), and says nothing about (s, a) that were never seen.

A chain of states multiplies one factor for each step: with the conditional it is the Markov chain
:math:`\prod_t p(s_{t+1} \mid s_t, a_t)`; joint factors count every inner state twice, which the quotient
:math:`\prod_t p(s_t, a_t, s_{t+1}) / \prod_t p(s_t)` takes back.

The network is shown :math:`(s, a, s' - s)`, each coordinate in units of its own standard deviation, since over one step
a state changes by much less than it varies.

Source: M. Gutmann, A. Hyvärinen (2010), Noise-contrastive estimation. Z. Ma, M. Collins (2018), Noise contrastive
estimation and negative sampling for conditional models: consistency and statistical efficiency. Planning on such
energies: Y. Du, T. Lin, I. Mordatch (2019), Model-based planning with energy-based models.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Normalized, Term
from boltzmix.compose.variable import Variable
from boltzmix.models.dynamics import Dynamics
from boltzmix.models.energy_model import EnergyModel
from boltzmix.models.gaussian_base import GaussianBase
from boltzmix.models.nets.energy import EnergyMLP
from boltzmix.models.nets.mlp import MLP
from boltzmix.models.objectives import NoiseContrastive, Objective, make_objective
from boltzmix.models.objectives.noise_contrastive import noise_contrastive


class StepFeatures(nn.Module):
    """A network that is shown (s, a, s' − s) in units of each coordinate's own standard deviation.

    Args:
        net: called ``net(features, *rest)``, where ``rest`` is what the model passes beside x.
        state: S.
        action: A.

    Example:
        >>> import torch
        >>> net = StepFeatures(EnergyMLP(5, hidden=8), 2, 1)
        >>> net(torch.zeros(3, 5)).shape
        torch.Size([3, 1])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, state: int, action: int = 0) -> None:
        """Hold the network; units are unknown until :meth:`take_units`."""
        super().__init__()
        self.net, self.state, self.action = net, state, action
        self.num_classes = getattr(net, "num_classes", None)
        self.scalar = bool(getattr(net, "scalar", False))
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.register_buffer("loc", torch.zeros(2 * state + action, **options))
        self.register_buffer("scale", torch.ones(2 * state + action, **options))

    def features(self, x: Tensor) -> Tensor:
        """(s, a, s' − s) in the units of x, ``(N, 2S + A)``."""
        if x.ndim != 2 or x.shape[1] != 2 * self.state + self.action:
            raise ValueError(
                f"a transition is a vector (s, a, s') of {self.state} + {self.action} + {self.state} numbers, got "
                f"{tuple(x.shape)}"
            )
        return torch.cat([x[:, : -self.state], x[:, -self.state :] - x[:, : self.state]], 1)

    def take_units(self, x: Tensor) -> None:
        """Standardise by the mean and standard deviation of the features of x; a coordinate that rests keeps 1."""
        values = self.features(x)
        deviations = values.std(0, correction=0)
        self.loc.copy_(values.mean(0))
        self.scale.copy_(torch.where(deviations > 0, deviations, 1.0))

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The network's value at the standardised features."""
        return self.net((self.features(x) - self.loc) / self.scale, *rest)


class Following(Normalized):
    """q(s' | s, a) of a :class:`~boltzmix.models.Dynamics` as a function of the vector (s, a, s').

    It integrates to one over s', not over the whole vector.

    Args:
        dynamics: the conditional density.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        """Hold the dynamics."""
        super().__init__()
        self.dynamics = dynamics
        self.variables = Variable((sum(dynamics.sizes.values()),))
        self.normalized_over = frozenset({"next"})

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """The vector cut into the variables of the dynamics."""
        sizes = self.dynamics.sizes
        return dict(zip(sizes, x.split(list(sizes.values()), -1), strict=True))

    def redraw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(s, a, s̃') with s̃' ~ q(· | s, a) in place of s'."""
        parts = self.parts(x)
        drawn = self.dynamics.draw(generator, **{name: parts[name] for name in self.dynamics.inputs})
        return torch.cat([x[:, : -drawn.shape[1]], drawn], 1)

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self.dynamics._energy(self.parts(x), None)

    def _rows(self) -> int:
        return self.dynamics._rows()


class ConditionalNoise(NoiseContrastive):
    """Noise-contrastive estimation of a conditional: noise for s' alone, from the model's own base q(s' | s, a).

    Args:
        ratio: noise draws for each datum.
    """

    def attach(self, model: Any) -> None:
        """The base must be a conditional density of the next state."""
        if not isinstance(model.core.base, Following):
            raise TypeError("ConditionalNoise is for a TransitionEnergy with base=Dynamics(…)")

    def loss(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """:func:`~boltzmix.models.objectives.noise_contrastive` with log p(s' | s, a) − log q(s' | s, a)."""
        with torch.no_grad():
            drawn = model.core.base.redraw(x.repeat(self.ratio, 1), generator)
        ratio = -(model.core.tilt(torch.cat([x, drawn])) + model.core.constant(None))
        data, fake = ratio[: len(x)], ratio[len(x) :]
        loss = noise_contrastive(data, fake, self.ratio)
        shift = math.log(self.ratio)
        right = ((data.detach() > shift).float().sum() + (fake.detach() <= shift).float().sum()) / len(ratio)
        self._measured = {"noise_contrastive": loss.detach(), "told_apart": right}
        return loss


class TransitionEnergy(EnergyModel):
    r"""A learned energy of transitions (see the module's page).

    Args:
        state: S, number of state coordinates.
        action: A; 0 for energies of (s, s').
        net: ``net(features, label) -> (N, 1)`` over 2S + A features; None builds an
            :class:`~boltzmix.models.nets.EnergyMLP`.
        base: ``"gaussian"`` (a full covariance, fitted to the first batch) or a normalised term over the vector, for
            the joint; trained :class:`~boltzmix.models.Dynamics` for the conditional, whose weights are held fixed.
        objective: as for :class:`~boltzmix.models.EnergyModel`; conditionals take ``"nce"``.
        ratio: noise draws for each datum, of ``"nce"``.
        hidden, depth: of the network that is built for you.
        options: further arguments of :class:`~boltzmix.models.EnergyModel`.

    Raises:
        ValueError: sizes out of range, a base over other sizes, an objective that does not train a conditional.

    Example:
        >>> import torch
        >>> p = TransitionEnergy(2, 1, hidden=8)
        >>> p.energy(p.join(torch.zeros(5, 2), torch.zeros(5, 1), torch.zeros(5, 2))).shape
        torch.Size([5])
        >>> TransitionEnergy(2, 1, base=Dynamics(2, 1, hidden=8), hidden=8).conditional
        True
    """

    def __init__(
        self,
        state: int,
        action: int = 0,
        *,
        net: nn.Module | None = None,
        base: "Dynamics | Term | str | None" = "gaussian",
        objective: "str | Mapping[str, Any] | Objective | None" = "nce",
        ratio: int = 4,
        hidden: int = 64,
        depth: int = 2,
        **options: Any,
    ) -> None:
        """Check the sizes, wrap the network and the base."""
        size = _check_sizes(state, action)
        self_net = EnergyMLP(size, hidden, depth) if net is None else net
        if isinstance(base, str):
            if base != "gaussian":
                raise ValueError(f"base is 'gaussian', Dynamics, a normalised term or None, got {base!r}")
            base = GaussianBase((size,), "full")
        conditional = isinstance(base, Dynamics)
        if isinstance(base, Dynamics):
            if (base.sizes["state"], base.sizes.get("action", 0)) != (state, action):
                raise ValueError(f"the dynamics are over sizes {base.sizes}, the energy over {state} and {action}")
            for parameter in base.parameters():
                parameter.requires_grad_(False)
            base = Following(base)
        if objective == "nce":
            objective = ConditionalNoise(ratio=ratio) if conditional else NoiseContrastive(ratio=ratio)
        made = make_objective(objective)
        if conditional and made is not None and not isinstance(made, ConditionalNoise):
            raise ValueError(
                f"the conditional p(s' | s, a) is trained by objective='nce'; {type(made).__name__} trains the joint, "
                "whose base is 'gaussian'"
            )
        super().__init__(StepFeatures(self_net, state, action), (size,), objective=made, base=base, **options)
        self.state, self.action = state, action

    @property
    def conditional(self) -> bool:
        """Whether the energy is that of s' given (s, a)."""
        return isinstance(self.core.base, Following)

    def join(self, state: Tensor, *rest: Tensor) -> Tensor:
        """(s, a, s') or (s, s') as the vector of this density, ``(N, 2S + A)``."""
        parts = (state, *rest)
        sizes = [self.state, *([self.action] if self.action else []), self.state]
        found = [tuple(part.shape[1:]) for part in parts]
        if found != [(size,) for size in sizes]:
            raise ValueError(f"a transition is made of vectors of sizes {sizes}, got {found}")
        return torch.cat(parts, 1)

    def prepare(self, batch: Any, generator: torch.Generator) -> None:
        """Take the units of the data from a batch, once; ``batch`` as for :meth:`loss`."""
        if bool(self.prepared):
            return
        x = self._vector(batch)
        super().prepare(x, generator)
        features = self.core.net
        assert isinstance(features, StepFeatures)
        features.take_units((x - self.core.shift) / self.core.width)

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Training loss of a batch: vectors ``(N, 2S + A)``, or ``(state, action, next)`` or ``(state, next)``."""
        x = self._vector(batch)
        self.prepare(x, generator)
        return super().loss(x, generator)

    def _vector(self, batch: Any) -> Tensor:
        return batch if isinstance(batch, Tensor) else self.join(*batch)

    def _check_base(self, base: object, shape: tuple[int, ...]) -> None:
        if not isinstance(base, Following):
            super()._check_base(base, shape)


class NoisedTransitionNet(nn.Module):
    r"""A network for :class:`~boltzmix.models.EnergyDiffusion` over transitions: the energy at every noise level.

    It is shown the vector and, beside it, the change :math:`k (s' - s)`: at small noise the change decides, and it is
    much smaller than the states. ``EnergyDiffusion(NoisedTransitionNet(4, 2), (10,))`` is trained by denoising score
    matching on vectors (s, a, s').

    Args:
        state: S.
        action: A.
        gain: k, about the ratio of the standard deviations of states and of their changes.
        hidden, depth: of the perceptron inside.

    Example:
        >>> import torch
        >>> NoisedTransitionNet(2, 1, hidden=8)(torch.zeros(3, 5), torch.zeros(3)).shape
        torch.Size([3, 1])
    """

    scalar = True
    num_classes = None

    def __init__(self, state: int, action: int = 0, *, gain: float = 1.0, hidden: int = 96, depth: int = 3) -> None:
        """Build the perceptron."""
        super().__init__()
        size = _check_sizes(state, action)
        if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain < math.inf:
            raise ValueError(f"gain is a number > 0, got {gain!r}")
        self.state, self.action, self.gain = state, action, float(gain)
        self.net = MLP(size + state, hidden, depth, out=1)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``(N, 2S + A)`` and ``(N,)`` to ``(N, 1)``."""
        if x.ndim != 2 or x.shape[1] != 2 * self.state + self.action:
            raise ValueError(
                f"a transition is a vector of {2 * self.state + self.action} numbers, got {tuple(x.shape)}"
            )
        change = x[:, -self.state :] - x[:, : self.state]
        return self.net(torch.cat([x, self.gain * change], 1), c_noise, label)


def _check_sizes(state: int, action: int) -> int:
    """2S + A."""
    for name, value, least in (("state", state, 1), ("action", action, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"the size of {name} is an int >= {least}, got {value!r}")
    return 2 * state + action
