"""Samplers of BlackJAX and NumPyro with their documented defaults, on :mod:`boltzmix.benchmarks.densities`.

Gradients are those that each library says it used: the leapfrog steps of NUTS, and two for each step of the isokinetic
integrator of McLachlan (a test counts them from inside the target). Chains adapt each on their own, in float64, from
the starts that are given. Functions are traced once for each target and number of draws, and reused for every seed.
"""

# jax and what is built on it are not among the tools of every checkout
# pyright: reportMissingImports=false

import importlib.util
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities import Density, density
from boltzmix.compose.errors import MissingExtra

#: acceptance that BlackJAX's own example of adjusted MCLMC recommends
ADJUSTED_ACCEPTANCE = 0.9


@dataclass(frozen=True)
class Chains:
    """What a sampler did on one target with one seed.

    Attributes:
        x: ``(chains, draws, D)`` in float64.
        gradients: evaluations of the sampling phase, over all chains.
        warmup_gradients: those before it.
        divergences: transitions of the sampling phase.
        step_size: mean over chains.
        length: of a trajectory: leapfrogs of a transition on average for NUTS, L / step size for MCLMC.
        numbers: what else is worth knowing.
    """

    x: Tensor
    gradients: int
    warmup_gradients: int
    divergences: int
    step_size: float
    length: float
    numbers: dict[str, Any] = field(default_factory=dict)


def missing() -> str:
    """The packages that are not installed, "" when all are there."""
    return ", ".join(name for name in ("jax", "blackjax", "numpyro") if importlib.util.find_spec(name) is None)


def require() -> None:
    """Refuse to go on without jax, BlackJAX and NumPyro.

    Raises:
        MissingExtra: with what to install.
    """
    if names := missing():
        raise MissingExtra(f'comparing with BlackJAX and NumPyro needs {names}: pip install "boltzmix[peers]"')


def blackjax_nuts(target: Density, starts: Tensor, warmup: int, draws: int, seed: int) -> Chains:
    """BlackJAX's NUTS after its window adaptation: diagonal mass, target acceptance 0.8, at most 10 doublings."""
    import jax

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), len(starts))
        found = jax.device_get(_blackjax_nuts(target.name, warmup, draws)(keys, starts.numpy()))
    return _nuts_chains(found)


def _nuts_chains(found: dict[str, Any]) -> Chains:
    """What either library's scan gave; the start of each chain was one gradient."""
    return Chains(
        torch.tensor(found["x"]),
        gradients=int(found["steps"].sum()),
        warmup_gradients=int(found["warmup_steps"].sum()) + len(found["x"]),
        divergences=int(found["divergent"].sum()),
        step_size=float(found["step_size"].mean()),
        length=float(found["steps"].mean()),
        numbers={"acceptance": float(found["acceptance"].mean()), "variances": found["mass"].mean(0).tolist()},
    )


@cache
def _blackjax_nuts(name: str, warmup: int, draws: int) -> Any:
    import blackjax
    import jax

    log_prob = density(name).jax_log_prob()
    adaptation: Any = blackjax.window_adaptation(blackjax.nuts, log_prob)
    kernel = blackjax.nuts.build_kernel()

    def chain(key: Any, start: Any) -> dict[str, Any]:
        warm, run = jax.random.split(key)
        (state, parameters), history = adaptation.run(warm, start, num_steps=warmup)

        def one(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = kernel(key, state, log_prob, parameters["step_size"], parameters["inverse_mass_matrix"])
            return state, (state.position, info.num_integration_steps, info.is_divergent, info.acceptance_rate)

        _, (x, steps, divergent, acceptance) = jax.lax.scan(one, state, jax.random.split(run, draws))
        return {
            "x": x, "steps": steps, "divergent": divergent, "acceptance": acceptance,
            "warmup_steps": history.info.num_integration_steps,
            "step_size": parameters["step_size"], "mass": parameters["inverse_mass_matrix"],
        }  # fmt: skip

    return jax.jit(jax.vmap(chain))


def numpyro_nuts(target: Density, starts: Tensor, warmup: int, draws: int, seed: int) -> Chains:
    """NumPyro's NUTS: diagonal mass, target acceptance 0.8, trees of depth at most 10.

    The kernel's ``init`` and ``sample`` in one scan: what ``numpyro.infer.MCMC`` does, but compiled once for all seeds.
    """
    import jax

    with jax.enable_x64(True):
        kernel, run = _numpyro_nuts(target.name, warmup, draws)
        keys = jax.random.split(jax.random.PRNGKey(seed), len(starts))
        states = kernel.init(keys, warmup, starts.numpy(), (), {})
        found = jax.device_get(run(states))
    return _nuts_chains(found)


@cache
def _numpyro_nuts(name: str, warmup: int, draws: int) -> Any:
    import jax
    from numpyro.infer import NUTS

    log_prob = density(name).jax_log_prob()
    kernel = NUTS(potential_fn=lambda x: -log_prob(x))

    def run(state: Any) -> dict[str, Any]:  # of all chains: ``init`` has told the kernel that there are several
        def warm(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, (), {})
            return state, state.num_steps

        def one(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, (), {})
            return state, (state.z, state.num_steps, state.diverging, state.accept_prob)

        state, warmup_steps = jax.lax.scan(warm, state, None, warmup)
        state, (x, steps, divergent, acceptance) = jax.lax.scan(one, state, None, draws)
        return {
            "x": x.swapaxes(0, 1), "steps": steps, "divergent": divergent, "acceptance": acceptance,
            "warmup_steps": warmup_steps,
            "step_size": state.adapt_state.step_size, "mass": state.adapt_state.inverse_mass_matrix,
        }  # fmt: skip

    return kernel, jax.jit(run)


def blackjax_mclmc(target: Density, starts: Tensor, steps: int, seed: int) -> Chains:
    """BlackJAX's unadjusted MCLMC after ``mclmc_find_L_and_step_size`` with its defaults; every step is a draw."""
    import jax

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), len(starts))
        found = jax.device_get(_blackjax_mclmc(target.name, steps)(keys, starts.numpy()))
    return Chains(
        torch.tensor(found["x"]),
        gradients=2 * steps * len(starts),
        warmup_gradients=(2 * int(found["tuning_steps"][0]) + 1) * len(starts),
        divergences=int((~found["finite"]).sum()),
        step_size=float(found["step_size"].mean()),
        length=float((found["length"] / found["step_size"]).mean()),
        numbers={
            "energy_error": float(np.square(found["energy_change"]).mean() / target.dim),
            "variances": found["mass"].mean(0).tolist(),
        },
    )


@cache
def _blackjax_mclmc(name: str, steps: int) -> Any:
    import blackjax
    import jax

    log_prob = density(name).jax_log_prob()
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def chain(key: Any, start: Any) -> dict[str, Any]:
        begin, tune, run = jax.random.split(key, 3)
        state = blackjax.mcmc.mclmc.init(start, log_prob, begin)
        state, found, tuning_steps = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel, num_steps=steps, state=state, rng_key=tune, logdensity_fn=log_prob
        )

        def one(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = kernel(key, state, log_prob, found.inverse_mass_matrix, found.L, found.step_size)
            return state, (state.position, info.energy_change, info.nonans)

        _, (x, energy_change, finite) = jax.lax.scan(one, state, jax.random.split(run, steps))
        return {
            "x": x, "energy_change": energy_change, "finite": finite, "tuning_steps": tuning_steps,
            "step_size": found.step_size, "length": found.L, "mass": found.inverse_mass_matrix,
        }  # fmt: skip

    return jax.jit(jax.vmap(chain))


def blackjax_adjusted_mclmc(target: Density, starts: Tensor, steps: int, seed: int) -> Chains:
    """BlackJAX's adjusted MCLMC with random trajectory lengths, after ``adjusted_mclmc_find_L_and_step_size``.

    Its tuning aims at two steps for each draw, so that ``steps`` integrator steps are about ``steps / 2`` draws.
    """
    import jax

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), len(starts))
        found = jax.device_get(_blackjax_adjusted(target.name, steps // 2)(keys, starts.numpy()))
    return Chains(
        torch.tensor(found["x"]),
        gradients=2 * int(found["steps"].sum()),
        warmup_gradients=2 * int(found["tuning_steps"].sum()) + len(starts),
        divergences=int(found["divergent"].sum()),
        step_size=float(found["step_size"].mean()),
        length=float(found["steps"].mean()),
        numbers={"acceptance": float(found["acceptance"].mean()), "variances": found["mass"].mean(0).tolist()},
    )


@cache
def _blackjax_adjusted(name: str, draws: int) -> Any:
    import blackjax
    import jax
    from blackjax.mcmc import adjusted_mclmc_dynamic as adjusted

    log_prob = density(name).jax_log_prob()
    kernel = adjusted.build_kernel(integration_steps_fn=adjusted.make_random_trajectory_length_fn(True))

    def chain(key: Any, start: Any) -> dict[str, Any]:
        begin, tune, run = jax.random.split(key, 3)
        state = adjusted.init(start, log_prob, begin)
        state, found, tuning_steps = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=kernel, logdensity_fn=log_prob, num_steps=draws, state=state, rng_key=tune,
            target=ADJUSTED_ACCEPTANCE,
        )  # fmt: skip
        average = (found.L / found.step_size,)

        def one(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = kernel(
                key, state, log_prob, found.step_size,
                inverse_mass_matrix=found.inverse_mass_matrix, integration_steps_params=average,
            )  # fmt: skip
            return state, (state.position, info.num_integration_steps, info.is_divergent, info.acceptance_rate)

        _, (x, count, divergent, acceptance) = jax.lax.scan(one, state, jax.random.split(run, draws))
        return {
            "x": x, "steps": count, "divergent": divergent, "acceptance": acceptance, "tuning_steps": tuning_steps,
            "step_size": found.step_size, "mass": found.inverse_mass_matrix,
        }  # fmt: skip

    return jax.jit(jax.vmap(chain))
