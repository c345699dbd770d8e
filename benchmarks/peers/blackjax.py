"""Samplers of BlackJAX (Cabezas, Corenflos, Lao and Louf, 2024, *BlackJAX: Composable Bayesian inference in JAX*).

A program is a scan over draws, and the step in it is mapped over chains: the library's own way of running many chains,
and the faster of the two orders (measured; the other is a map over scans). Gradients are those that the library says it
used: the leapfrog steps of a transition, and two for each step of the isokinetic integrator of McLachlan;
:func:`boltzmix.benchmarks.peers.verify_count` counts them from inside.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from boltzmix.benchmarks.peers.jax_base import JaxPeer, LogProb

#: one chain's tuning, ``(key, start) -> (state, settings, facts)``, and one draw,
#: ``(key, state, settings) -> (state, facts)``
Chain = tuple[Callable[[Any, Any], Any], Callable[[Any, Any, Any], Any]]

#: transitions that the tuning of MCLMC takes for each of its ``num_steps``: 0.1 + 0.1 · 4/3 + 0.1
_MCLMC_SHARE = 1 / 3
#: the same of adjusted MCLMC: 0.1 + 0.1, and once more 0.1
_ADJUSTED_SHARE = 0.3


def positive(name: str, value: float | None) -> None:
    """Refuse a setting that is neither None nor a positive number.

    Raises:
        ValueError: with its name.
    """
    if value is not None and (isinstance(value, bool) or not 0.0 < value < float("inf")):
        raise ValueError(f"{name} is a positive number or None, got {value!r}")


@dataclass(frozen=True)
class BlackJAX(JaxPeer):
    """One chain of a sampler, mapped over chains and scanned over draws."""

    library: ClassVar[str] = "BlackJAX"
    packages: ClassVar[tuple[str, ...]] = ("jax", "blackjax")

    @abstractmethod
    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        """Tuning, and one draw."""

    def _functions(self, log_prob: LogProb, dim: int, chains: int, warmup: int, draws: int) -> tuple[Any, Any]:
        import jax

        tune, step = self._chain(log_prob, dim, warmup, draws)

        def tune_all(key: Any, starts: Any) -> Any:
            state, settings, facts = jax.vmap(tune)(jax.random.split(key, chains), starts)
            return (state, settings), facts

        def draw_all(key: Any, carry: Any) -> Any:
            state, settings = carry

            def one(state: Any, key: Any) -> Any:
                return jax.vmap(step)(jax.random.split(key, chains), state, settings)

            state, facts = jax.lax.scan(one, state, jax.random.split(key, draws))
            return (state, settings), facts

        return tune_all, draw_all


def transition(state: Any, info: Any, gradients: Any) -> tuple[Any, dict[str, Any]]:
    """What is kept of a draw with a Metropolis test."""
    return state, {
        "x": state.position, "gradients": gradients, "divergent": info.is_divergent, "acceptance": info.acceptance_rate
    }  # fmt: skip


def warmed(adaptation: Any, warmup: int) -> Callable[[Any, Any], Any]:
    """The library's window adaptation, with its cost: the start is one gradient."""

    def tune(key: Any, start: Any) -> Any:
        (state, found), history = adaptation.run(key, start, num_steps=warmup)
        settings = {"step_size": found["step_size"], "mass": found["inverse_mass_matrix"]}
        return state, settings, {"gradients": history.info.num_integration_steps.sum() + 1, **settings}

    return tune


def thrown_away(init: Callable[[Any], Any], step: Any, settings: dict[str, Any], warmup: int) -> Callable[..., Any]:
    """The warm-up of a sampler whose settings are given: ``warmup`` transitions that are not kept."""

    def tune(key: Any, start: Any) -> Any:
        import jax
        import jax.numpy as jnp

        fixed = {name: jnp.asarray(value, start.dtype) for name, value in settings.items()}

        def one(state: Any, key: Any) -> Any:
            state, facts = step(key, state, fixed)
            return state, facts["gradients"]

        state, costs = jax.lax.scan(one, init(start), jax.random.split(key, warmup))
        return state, fixed, {"gradients": costs.sum() + 1, **fixed}

    return tune


@dataclass(frozen=True)
class BlackJAXNUTS(BlackJAX):
    """NUTS after window adaptation: diagonal mass, target acceptance 0.8, at most 10 doublings.

    Hoffman and Gelman, 2014, *The No-U-Turn Sampler*.
    """

    algorithm: ClassVar[str] = "NUTS"

    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        import blackjax

        kernel = blackjax.nuts.build_kernel()

        def step(key: Any, state: Any, settings: Any) -> Any:
            state, info = kernel(key, state, log_prob, settings["step_size"], settings["mass"])
            return transition(state, info, info.num_integration_steps)

        adaptation: Any = blackjax.window_adaptation(blackjax.nuts, log_prob)
        return warmed(adaptation, warmup), step


@dataclass(frozen=True)
class BlackJAXHMC(BlackJAX):
    """HMC with a fixed number of leapfrog steps.

    Args:
        num_leapfrog: L, gradients of a transition.
        step_size: with unit mass and nothing adapted; None adapts step and diagonal mass by window adaptation.
    """

    num_leapfrog: int = 10
    step_size: float | None = None
    algorithm: ClassVar[str] = "HMC"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        positive("step_size", self.step_size)
        if isinstance(self.num_leapfrog, bool) or not isinstance(self.num_leapfrog, int) or self.num_leapfrog < 1:
            raise ValueError(f"num_leapfrog is an int >= 1, got {self.num_leapfrog!r}")

    def _cost(self) -> float:
        return self.num_leapfrog

    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        import blackjax
        import jax.numpy as jnp

        kernel = blackjax.hmc.build_kernel()

        def step(key: Any, state: Any, settings: Any) -> Any:
            mass = settings.get("mass", jnp.ones(dim, state.position.dtype))
            size = settings["step_size"] if self.step_size is None else self.step_size
            state, info = kernel(key, state, log_prob, size, mass, self.num_leapfrog)
            return transition(state, info, jnp.asarray(info.num_integration_steps))

        if self.step_size is not None:
            start = lambda x: blackjax.hmc.init(x, log_prob)  # noqa: E731
            return thrown_away(start, step, {"step_size": self.step_size}, warmup), step
        adaptation: Any = blackjax.window_adaptation(blackjax.hmc, log_prob, num_integration_steps=self.num_leapfrog)
        return warmed(adaptation, warmup), step


@dataclass(frozen=True)
class BlackJAXMALA(BlackJAX):
    r"""MALA, :math:`x' = x + \tau \nabla \log p(x) + \sqrt{2 \tau} \xi` and a Metropolis test.

    The library adapts no step size for it. Without one, its dual averaging aims at an acceptance of 0.574 in the
    warm-up (Roberts and Rosenthal, 1998).

    Args:
        step_size: τ; None adapts it.
    """

    step_size: float | None = None
    algorithm: ClassVar[str] = "MALA"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        positive("step_size", self.step_size)

    def _cost(self) -> float:
        return 1.0

    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        import blackjax
        import jax
        import jax.numpy as jnp
        from blackjax.adaptation.step_size import dual_averaging_adaptation

        kernel = blackjax.mala.build_kernel()

        def step(key: Any, state: Any, settings: Any) -> Any:
            state, info = kernel(key, state, log_prob, settings["step_size"])
            none = jnp.zeros((), bool)
            return state, {
                "x": state.position, "gradients": jnp.ones((), int), "divergent": none,
                "acceptance": info.acceptance_rate,
            }  # fmt: skip

        def start(x: Any) -> Any:
            return blackjax.mala.init(x, log_prob)

        if self.step_size is not None:
            return thrown_away(start, step, {"step_size": self.step_size}, warmup), step
        begin, update, final = dual_averaging_adaptation(target=0.574)

        def tune(key: Any, x: Any) -> Any:
            def one(carry: Any, key: Any) -> Any:
                state, average = carry
                state, facts = step(key, state, {"step_size": jnp.exp(average.log_step_size)})
                return (state, update(average, facts["acceptance"])), None

            first = begin(jnp.asarray(1.0 / dim, x.dtype))
            (state, average), _ = jax.lax.scan(one, (start(x), first), jax.random.split(key, warmup))
            settings = {"step_size": final(average)}
            return state, settings, {"gradients": jnp.asarray(warmup + 1), **settings}

        return tune, step


@dataclass(frozen=True)
class BlackJAXMCLMC(BlackJAX):
    """Unadjusted microcanonical Langevin Monte Carlo, tuned by ``mclmc_find_L_and_step_size`` with its defaults.

    Biased by its step, which the tuning holds at an energy variance of 5e-4 per dimension. Every step is a draw.
    Robnik, De Luca, Silverstein and Seljak, 2023, *Microcanonical Hamiltonian Monte Carlo*.

    Args:
        step_size, length: ε and L, with unit mass and nothing tuned; both None tunes them and a diagonal mass.
    """

    step_size: float | None = None
    length: float | None = None
    algorithm: ClassVar[str] = "MCLMC"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        positive("step_size", self.step_size)
        positive("length", self.length)
        if (self.step_size is None) != (self.length is None):
            raise ValueError("step_size and length are given together, or neither is")

    def _cost(self) -> float:
        return 2.0

    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        import blackjax
        import jax
        import jax.numpy as jnp

        kernel = blackjax.mcmc.mclmc.build_kernel()

        def step(key: Any, state: Any, settings: Any) -> Any:
            mass = settings.get("mass", 1.0)
            state, info = kernel(key, state, log_prob, mass, settings["momentum"], settings["step_size"])
            return state, {
                "x": state.position, "gradients": jnp.asarray(2), "divergent": ~jnp.asarray(info.nonans),
                "energy_error": info.energy_change**2 / dim,
            }  # fmt: skip

        def tune(key: Any, start: Any) -> Any:
            begin, key = jax.random.split(key)
            state = blackjax.mcmc.mclmc.init(start, log_prob, begin)
            state, found, steps = blackjax.mclmc_find_L_and_step_size(
                mclmc_kernel=kernel, num_steps=round(warmup / _MCLMC_SHARE), state=state, rng_key=key,
                logdensity_fn=log_prob,
            )  # fmt: skip
            settings = {"momentum": found.L, "step_size": found.step_size, "mass": found.inverse_mass_matrix}
            facts = {"gradients": jnp.asarray(2 * steps + 1), "length": found.L / found.step_size}
            return state, settings, {**facts, "step_size": found.step_size, "mass": found.inverse_mass_matrix}

        if self.step_size is None:
            return tune, step
        given = {"momentum": self.length, "step_size": self.step_size}

        def untuned(key: Any, start: Any) -> Any:
            first, key = jax.random.split(key)
            throw = thrown_away(lambda x: blackjax.mcmc.mclmc.init(x, log_prob, first), step, given, warmup)
            state, fixed, facts = throw(key, start)
            return state, fixed, {**facts, "length": fixed["momentum"] / fixed["step_size"]}

        return untuned, step


@dataclass(frozen=True)
class BlackJAXAdjustedMCLMC(BlackJAX):
    """MCLMC with a Metropolis test and random trajectory lengths, tuned by ``adjusted_mclmc_find_L_and_step_size``.

    The tuning aims at two steps for each draw, which are four gradients.

    Args:
        acceptance: that the tuning aims at; 0.9 is what the library's own example recommends.
    """

    acceptance: float = 0.9
    algorithm: ClassVar[str] = "adjusted MCLMC"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 0.0 < self.acceptance < 1.0:
            raise ValueError(f"acceptance is between 0 and 1, got {self.acceptance!r}")

    def _cost(self) -> float:
        return 4.0

    def _chain(self, log_prob: LogProb, dim: int, warmup: int, draws: int) -> Chain:
        import blackjax
        import jax
        from blackjax.mcmc import adjusted_mclmc_dynamic as adjusted

        kernel = adjusted.build_kernel(integration_steps_fn=adjusted.make_random_trajectory_length_fn(True))

        def step(key: Any, state: Any, settings: Any) -> Any:
            state, info = kernel(
                key, state, log_prob, settings["step_size"],
                inverse_mass_matrix=settings["mass"], integration_steps_params=(settings["average"],),
            )  # fmt: skip
            return transition(state, info, 2 * info.num_integration_steps)

        def tune(key: Any, start: Any) -> Any:
            begin, key = jax.random.split(key)
            state = adjusted.init(start, log_prob, begin)
            state, found, steps = blackjax.adjusted_mclmc_find_L_and_step_size(
                mclmc_kernel=kernel, logdensity_fn=log_prob, num_steps=round(warmup / _ADJUSTED_SHARE), state=state,
                rng_key=key, target=self.acceptance,
            )  # fmt: skip
            found_settings = {"step_size": found.step_size, "mass": found.inverse_mass_matrix}
            settings = {"average": found.L / found.step_size, **found_settings}
            return state, settings, {"gradients": 2 * steps + 1, **found_settings}

        return tune, step
