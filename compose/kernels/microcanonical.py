r"""Microcanonical Langevin Monte Carlo: particles of constant speed, with and without a Metropolis test.

In whitened units, with a velocity u on the unit sphere in D dimensions,

.. math::
    \dot x = F u, \qquad \dot u = \frac{(I - u u^T)\, g(x)}{D - 1}, \qquad g = F^T s,

leaves p(x) times the uniform law of u invariant: the drift of x adds :math:`u \cdot g` to the logarithm of the
density, and the flow of u contracts the sphere by just as much. With :math:`e = g / |g|`,
:math:`\delta = \epsilon |g| / (D - 1)` and :math:`c = u \cdot e`, the flow of u alone over a time ε is

.. math::
    u \leftarrow \frac{u + (\sinh\delta + c\,(\cosh\delta - 1))\, e}{\cosh\delta + c \sinh\delta}, \qquad
    \Delta K = (D - 1) \log(\cosh\delta + c \sinh\delta),

where :math:`e^{-\Delta K}` is the Jacobian of the map on the sphere. Kicks of u and drifts of x alternate, and
:math:`\Delta E = -\Delta\log p + \Delta K` is the energy error: zero for exact dynamics, and what a Metropolis test
needs.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from boltzmix.compose.kernels.base import (
    Info,
    Kernel,
    Noise,
    State,
    StateLike,
    Target,
    Tune,
    check_positive,
    energy_fall,
    metropolis,
    take_stable,
)
from boltzmix.compose.kernels.velocity import VelocityState, turned
from boltzmix.compose.tracing import Repetitions, repeat, unknown_repetitions

if TYPE_CHECKING:
    from boltzmix.compose.adaptation.base import Adaptation

#: coefficients of kick, drift, kick, …; the second is the two-stage scheme of least error (McLachlan, 1995)
INTEGRATORS: dict[str, tuple[float, ...]] = {
    "leapfrog": (0.5, 1.0, 0.5),
    "mclachlan": (0.1931833275037836, 0.5, 0.6136333449924328, 0.5, 0.1931833275037836),
}


@dataclass(frozen=True)
class MicrocanonicalInfo(Info):
    """With ``energy_error`` ``(N,)``, ΔE of the proposal, from which step sizes are learnt."""

    energy_error: Tensor | None = None


@dataclass(frozen=True)
class MicrocanonicalLangevin(Kernel):
    r"""MCLMC (Robnik, De Luca, Silverstein and Seljak, 2023, *Microcanonical Hamiltonian Monte Carlo*; Robnik and
    Seljak, 2024, *Fluctuation without dissipation*) and, with ``adjusted=True``, MAMS (Robnik, Cohn-Gordon and Seljak,
    2025, *Metropolis adjusted microcanonical Hamiltonian Monte Carlo*).

    Unadjusted, a transition is one step of the integrator and a partial renewal of the velocity,
    :math:`u \leftarrow (u + \nu\xi) / |u + \nu\xi|` with :math:`\nu^2 = (e^{2\epsilon/L} - 1) / D`: directions are
    forgotten over a length L. Terms that have only a score will do; the energy error is then a trapezoid rule's.

    Adjusted, a transition draws a velocity, goes a number of steps that is uniform with mean L/ε (one number for all
    chains, so that none waits for the others), and accepts with probability :math:`\min(1, e^{-\Delta E})`.

    Unadjusted kernels are biased. On N(0, v I) in D dimensions, with :math:`h = \epsilon / \sqrt{D v}`, the variance
    tends to :math:`\rho v` as D grows, where ρ makes an integrator's step from :math:`x \cdot u = 0` end at the same
    :math:`|x|^2`. For the leapfrog that is :math:`y \tanh y = h^2 / 4` with :math:`y = h \sqrt\rho / 2`, so that
    ρ ≈ 1 + h²/12, and :math:`E[\Delta E^2] / D \approx h^6 / 144`; ``"mclachlan"`` has ρ ≈ 1 − 0.011 h². Adaptation
    chooses ε such that :math:`E[\Delta E^2] / D` is 5·10⁻⁴, at which variances of such a Gaussian are 2 % too small
    (3.5 % too large with the leapfrog). A step that is not finite, or whose energy error exceeds 100 + D, is refused
    and counted as a divergence; the chain turns round.

    Args:
        step_size: ε, in units of x divided by the square root of the mass; None has it adapted.
        length: L, in the units of ε; None is adapted with ε, and √D where ε is given.
        adjusted: test each trajectory, which makes the kernel exact; needs energies.
        integrator: ``"mclachlan"`` (two evaluations a step) or ``"leapfrog"`` (one).

    Raises:
        ValueError: a number that is not positive and finite, another integrator, or a target of one dimension: there
            is nowhere to turn, and these dynamics need two.

    Example:
        >>> import torch, boltzmix as bm
        >>> p = bm.Gaussian(torch.zeros(10), 1.0)
        >>> kernel = bm.MicrocanonicalLangevin(step_size=2.0, adjusted=True)
        >>> draw = bm.sample(p, chains=4, sampler=bm.MCMC(kernel, draws=10), seed=0)
        >>> tuple(draw.x.shape)
        (4, 10, 10)
    """

    length: float | None = None
    adjusted: bool = False
    integrator: str = "mclachlan"

    def __post_init__(self) -> None:
        """Check what the base does not know."""
        super().__post_init__()
        if self.length is not None:
            check_positive(self, "length", self.length)
        if not isinstance(self.adjusted, bool):
            raise TypeError(f"MicrocanonicalLangevin's adjusted is True or False, got {self.adjusted!r}")
        if self.integrator not in INTEGRATORS:
            raise ValueError(
                f"MicrocanonicalLangevin's integrator is one of {', '.join(map(repr, INTEGRATORS))}, "
                f"got {self.integrator!r}"
            )

    @property
    def target_acceptance(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """0.9, and 0.98 without a test, where samplers that adapt by acceptance alone must bound the bias."""
        return 0.9 if self.adjusted else 0.98

    @property
    def evaluations_per_step(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of one step of the integrator; an adjusted transition takes L/ε of them on average."""
        stages = len(INTEGRATORS[self.integrator]) // 2
        if self.adjusted and self.step_size is not None and self.length is not None:
            return stages * max(1, round(self.length / self.step_size))
        return stages

    def init(self, target: Target, x: Tensor, generator: torch.Generator | None = None) -> State:
        """Evaluate the start; two coordinates or more."""
        state = super().init(target, x, generator)
        if x.shape[1] < 2:
            raise ValueError(
                "MicrocanonicalLangevin moves at constant speed and needs a direction to turn to: the target has "
                "dimension 1, and at least 2 are needed; use HMC or NUTS"
            )
        return state

    def attach(self, state: State, generator: torch.Generator | None = None) -> State:
        """Unadjusted, the state with a velocity on the unit sphere."""
        if self.adjusted:
            return state
        x = state.x
        normal = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return VelocityState(state.x, state.energy, state.score, unit(normal))

    def refresh(self, target: Target, state: StateLike, known: bool = False) -> StateLike:
        """As the base, with energies wherever there are any."""
        if self.adjusted or not target.has_energy:
            return super().refresh(target, state, known)
        energy, score = target.energy_and_score(state.x)
        return replace(state, energy=energy, score=score)

    def step(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        """One transition of every chain."""
        if self.adjusted:
            return self._trajectory(target, state, tune, noise)
        assert isinstance(state, VelocityState)
        proposal, gain, work = self._integrate(target, state, tune, tune.column)
        error = gain - energy_fall(target, state, proposal, -work)
        chosen, info = take_stable(state, proposal, -error)
        chosen = turned(chosen, info.accepted)
        size, length = tune.column, _column(self._length(tune, state.x))
        spread = (torch.expm1(2 * size / length) / state.x.shape[1]).sqrt()
        chosen = replace(chosen, velocity=unit(chosen.velocity + spread * noise.normal))
        return chosen, MicrocanonicalInfo(info.acceptance, info.accepted, info.divergent, energy_error=error)

    def _trajectory(self, target: Target, state: State, tune: Tune, noise: Noise) -> tuple[State, Info]:
        def move(
            x: Tensor, energy: Tensor, score: Tensor, velocity: Tensor, kinetic: Tensor, size: Tensor, tune: Tune
        ) -> tuple[Tensor, ...]:
            end, gain, _ = self._integrate(target, VelocityState(x, energy, score, velocity), tune, size)
            return end.x, end.energy, end.score, end.velocity, kinetic + gain

        kinetic = torch.zeros_like(state.energy)
        carry: tuple[Tensor, ...] = (state.x, state.energy, state.score, unit(noise.normal), kinetic)
        count = self.repetitions(tune, noise)
        if isinstance(count, Tensor):  # chains differ: rows that have arrived take steps of size zero
            for k in range(int(count.max())):
                carry = repeat(1, move, carry, (tune.column * (k < count)[:, None], tune))
        else:
            carry = repeat(count, move, carry, (tune.column, tune))
        x, energy, score, _, kinetic = carry
        end = State(x, energy, score)
        error = end.energy - state.energy + kinetic
        state, info = metropolis(state, end, -error, noise.uniform)
        evaluations = None
        if not isinstance(count, Repetitions):
            stages = len(INTEGRATORS[self.integrator]) // 2
            evaluations = torch.full_like(info.accepted, stages, dtype=torch.long) * count
        return state, MicrocanonicalInfo(
            info.acceptance, info.accepted, info.divergent, num_leapfrog=evaluations, energy_error=error
        )

    def repetitions(self, tune: Tune, noise: Noise) -> int | Tensor | Repetitions:
        """Steps of an adjusted transition: one number, or ``(N,)`` where step sizes or lengths differ by chain."""
        ratio = self._length(tune, noise.normal) / tune.step_size
        if ratio.ndim == 0 and (unknown := unknown_repetitions()) is not None:
            return unknown
        # ceil(u (2r − 1)) has mean r; u is that of the first row for all
        counts = (noise.jitter[0] * (2 * ratio - 1)).ceil().clamp(min=1).long()
        return counts if ratio.ndim else int(counts)

    def _integrate(
        self, target: Target, state: VelocityState, tune: Tune, size: Tensor
    ) -> tuple[VelocityState, Tensor, Tensor]:
        """One step of the integrator, ΔK, and −Δlog p by the trapezoid rule."""
        coefficients = INTEGRATORS[self.integrator]
        x, energy, score = state.x, state.energy, state.score
        velocity, gain = kick(state.velocity, tune.pull(score), coefficients[0] * size)
        work = torch.zeros_like(gain)
        for j in range(1, len(coefficients), 2):
            shift = coefficients[j] * size * tune.push(velocity)
            x, before = x + shift, score
            if target.has_energy and j == len(coefficients) - 2:
                energy, score = target.energy_and_score(x)
            else:
                score = target.score(x)
            work = work - (0.5 * (before + score) * shift).sum(-1)
            velocity, more = kick(velocity, tune.pull(score), coefficients[j + 1] * size)
            gain = gain + more
        return VelocityState(x, energy, score, velocity), gain, work

    def _length(self, tune: Tune, x: Tensor) -> Tensor:
        """L as tuned, or as given, or √D."""
        if tune.length is not None:
            return tune.length
        return torch.full_like(tune.step_size, self.length or math.sqrt(x.shape[1]))

    def tune(self, like: Tensor | None = None) -> Tune:
        """Tuning as given, without adaptation."""
        given = super().tune(like)
        if self.length is None:
            return given
        return replace(given, length=torch.full_like(given.step_size, self.length))

    def adaptation(self) -> "Adaptation":
        """Step size, diagonal mass and length as these dynamics need them."""
        from boltzmix.compose.adaptation.microcanonical import Microcanonical

        return Microcanonical()

    def tuned(self, tune: Tune) -> "MicrocanonicalLangevin":
        """The kernel with a tuning as its hyper-parameters."""
        length = None if tune.length is None else float(tune.length.median())
        return replace(super().tuned(tune), length=length)

    def initial_step_size(self, dim: int) -> float:
        """A quarter of √D, the radius of the typical set."""
        return 0.25 * math.sqrt(dim)


def kick(velocity: Tensor, score: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    r"""The flow of u at a fixed score over a time ``size``, and ΔK.

    Written with :math:`\zeta = e^{-\delta} \le 1`, so that steep scores do not overflow, and with
    :math:`1 \pm c = |u \pm e|^2 / 2`, so that nothing cancels where the velocity points against the score.
    """
    norm = score.norm(dim=-1, keepdim=True)
    e = score / torch.where(norm > 0, norm, 1.0)
    spare = velocity.shape[1] - 1
    delta = size * norm / spare
    zeta = (-delta).exp()
    along = 0.25 * ((velocity + e) ** 2).sum(-1, keepdim=True)
    against = 0.25 * ((velocity - e) ** 2).sum(-1, keepdim=True)
    c = along - against
    turned = 2 * zeta * velocity + (1 - zeta) * (1 + zeta + c * (1 - zeta)) * e
    gain = spare * (delta + (along + against * zeta * zeta).log())
    return unit(turned), torch.where(norm > 0, gain, 0.0)[:, 0]


def unit(vector: Tensor) -> Tensor:
    """Each row divided by its length."""
    return vector / vector.norm(dim=-1, keepdim=True)


def _column(value: Tensor) -> Tensor:
    return value[:, None] if value.ndim else value
