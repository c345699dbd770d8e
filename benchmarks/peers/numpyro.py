"""Samplers of NumPyro (Phan, Pradhan and Jankowiak, 2019, *Composable effects for flexible and accelerated
probabilistic programming in NumPyro*).

The kernel's ``init`` and ``sample`` in one scan, over chains that are mapped together: what ``MCMC`` with
``chain_method="vectorized"`` does, but compiled once for all seeds.
"""

# pyright: reportMissingImports=false

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from boltzmix.benchmarks.peers.jax_base import JaxPeer, LogProb


@dataclass(frozen=True)
class NumPyro(JaxPeer):
    """A kernel of NumPyro, adapting step size and diagonal mass in the warm-up."""

    library: ClassVar[str] = "NumPyro"
    packages: ClassVar[tuple[str, ...]] = ("jax", "numpyro")

    @abstractmethod
    def _kernel(self, log_prob: LogProb) -> Any:
        """The kernel, with the library's defaults."""

    def _functions(self, log_prob: LogProb, dim: int, chains: int, warmup: int, draws: int) -> tuple[Any, Any]:
        import jax

        kernel = self._kernel(log_prob)

        def tune(key: Any, starts: Any) -> Any:
            def one(state: Any, _: None) -> Any:
                state = kernel.sample(state, (), {})
                return state, state.num_steps

            keys = jax.vmap(jax.random.key_data)(jax.random.split(key, chains))  # the kernel tells chains by the shape
            state = kernel.init(keys, warmup, starts, (), {})
            state, steps = jax.lax.scan(one, state, None, warmup)
            found = {"step_size": state.adapt_state.step_size, "mass": state.adapt_state.inverse_mass_matrix}
            return state, {"gradients": steps.sum(0) + 1, **found}

        def draw(key: Any, state: Any) -> Any:
            def one(state: Any, _: None) -> Any:
                state = kernel.sample(state, (), {})
                return state, {
                    "x": state.z, "gradients": state.num_steps, "divergent": state.diverging,
                    "acceptance": state.accept_prob,
                }  # fmt: skip

            keys = jax.vmap(jax.random.key_data)(jax.random.split(key, chains))
            return jax.lax.scan(one, state._replace(rng_key=keys), None, draws)

        return tune, draw


@dataclass(frozen=True)
class NumPyroNUTS(NumPyro):
    """NUTS: diagonal mass, target acceptance 0.8, trees of depth at most 10."""

    algorithm: ClassVar[str] = "NUTS"

    def _kernel(self, log_prob: LogProb) -> Any:
        from numpyro.infer import NUTS

        return NUTS(potential_fn=lambda x: -log_prob(x))


@dataclass(frozen=True)
class NumPyroHMC(NumPyro):
    """HMC with trajectories of length 2π in units of the adapted mass, target acceptance 0.8."""

    algorithm: ClassVar[str] = "HMC"

    def _kernel(self, log_prob: LogProb) -> Any:
        from numpyro.infer import HMC

        return HMC(potential_fn=lambda x: -log_prob(x))
