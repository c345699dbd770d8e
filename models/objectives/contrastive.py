r"""Contrastive divergence: the likelihood's gradient with chains in place of the model's expectation.

.. math:: \nabla_\theta\, E_{data}[-\log p_\theta] = E_{data}[\nabla_\theta E] - E_{p_\theta}[\nabla_\theta E]

The second expectation comes from chains of one of the project's kernels: k steps from the data (CD-k), or k steps from
where they stood a training step ago (persistent). Both are biased, CD-k by its short chains, the persistent form by how
far the chains lag behind.

**Weights.** Chains that cannot cross between modes keep whatever masses they started with, and the energies then learn
nothing about the modes' relative masses. With weights (the default) the chains are instead an annealed importance
sampler whose target is the model as it trains: a parameter update from θ to θ′ multiplies the weight of x by
:math:`e^{E_\theta(x) - E_{\theta'}(x)}`, kernels with an accept step leave weights alone, and chains are resampled when
few are effective. Weighted averages then estimate the model's expectation without bias from mixing, and the mean weight
is the model's integral, :math:`\hat Z`, so the training likelihood is known as well (Carbone et al., 2023).
"""

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from boltzmix.compose.errors import NonFinite, SamplingWarning
from boltzmix.compose.kernels import HMC, MALA, ULA
from boltzmix.compose.kernels.base import Info, Kernel, State, Tune
from boltzmix.models.nets.embedding import NULL
from boltzmix.models.objectives.base import Objective
from boltzmix.models.replay import ReplayBuffer

_KERNELS: dict[str, type[Kernel]] = {"ula": ULA, "mala": MALA, "hmc": HMC}


def contrastive_divergence(energy_data: Tensor, energy_chains: Tensor, weights: Tensor | None = None) -> Tensor:
    r""":math:`\tfrac1N \sum_i E(x_i) - \sum_j w_j E(\tilde x_j)`, whose gradient is that of −log p.

    Args:
        energy_data: E at data, ``(N,)``.
        energy_chains: E at draws of the model ``(M,)``, through which no gradient to the states flows.
        weights: of the draws, summing to 1; None for equal ones.

    Source: G. Hinton (2002), Training products of experts by minimizing contrastive divergence.

    Example:
        >>> import torch
        >>> float(contrastive_divergence(torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0]), torch.tensor([0.5, 0.5])))
        -4.0
    """
    model = energy_chains.mean() if weights is None else (weights * energy_chains).sum()
    return energy_data.mean() - model


class ChainTarget:
    """What a kernel sees of a model in training: energies and scores of flat rows, each with its label."""

    has_energy = True

    def __init__(self, core: Any, shape: tuple[int, ...], label: Tensor | None) -> None:
        """Bind the labels."""
        self.core, self.shape, self.label = core, shape, label
        self.dim = math.prod(shape)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E ``(N,)`` and −∇E ``(N, D)``; nothing is kept for the parameters."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energy = self.core(leaf.reshape(-1, *self.shape), self.label)
            (slope,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -slope

    def score(self, x: Tensor) -> Tensor:
        """−∇E ``(N, D)``."""
        return self.energy_and_score(x)[1]


class ContrastiveDivergence(Objective):
    """Contrastive divergence, persistent by default, with a replay buffer.

    Args:
        persistent: keep the chains from step to step; False starts them at the data (CD-k).
        steps: k, kernel transitions for each training step.
        kernel: ``"mala"`` (the default), ``"hmc"``, ``"ula"``, or a kernel of :mod:`boltzmix.compose.kernels`. Its step
            size is adapted to the kernel's target acceptance while training unless it is given. ULA is biased.
        capacity: chains in the buffer. Every training step moves all when weighted, else as many as the batch has rows.
        reinitialize: share of the visited chains that is drawn anew, so that regions no chain has seen are found.
        restart: where these come from: ``"base"``, or ``"data"`` (the batch, with noise of a tenth of its width).
        weighted: weigh the chains as the module's page describes; None does where it can: persistent chains that
            restart from the base, moved by a kernel that accepts or rejects. Without weights, chains that were drawn
            anew count fully before they have reached the model, which can drive energies up without end: use many
            steps, a small lr and ``regularization``.
        ess_threshold: resample weighted chains below this effective share.
        regularization: α of ``α E[f²]`` over data and chains, f being the network's part of the energy: it keeps
            energies from drifting to large magnitudes.
        limit: largest |E_model[E] − E_data[E]|, in units of D + 10, before training is stopped as having diverged.

    Raises:
        NonFinite: energies or scores of chains that are not finite, or that have run away; nothing is clamped.
        ValueError: numbers out of range. TypeError: kernels and options that do not go together.

    A ``SamplingWarning`` is given once when nearly no proposal is accepted, or many diverge.

    Sources: G. Hinton (2002), Training products of experts by minimizing contrastive divergence. T. Tieleman (2008),
    Training restricted Boltzmann machines using approximations to the likelihood gradient. Y. Du, I. Mordatch (2019),
    Implicit generation and modeling with energy-based models. D. Carbone, M. Hua, S. Coste, E. Vanden-Eijnden (2023),
    Efficient training of energy-based models using Jarzynski equality.
    """

    log_step: Tensor
    moved: Tensor

    def __init__(
        self,
        *,
        persistent: bool = True,
        steps: int = 5,
        kernel: str | Kernel = "mala",
        capacity: int = 512,
        reinitialize: float = 0.05,
        restart: Literal["base", "data"] = "base",
        weighted: bool | None = None,
        ess_threshold: float = 0.5,
        regularization: float = 0.0,
        limit: float = 100.0,
    ) -> None:
        """Check the numbers."""
        super().__init__()
        if isinstance(kernel, str):
            if kernel not in _KERNELS:
                raise ValueError(f"kernel is one of {sorted(_KERNELS)} or a kernel, got {kernel!r}")
            kernel = HMC(num_leapfrog=3) if kernel == "hmc" else _KERNELS[kernel]()
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel is a name or a kernel such as MALA(), got {type(kernel).__name__}")
        for name, value in (("steps", steps), ("capacity", capacity)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a positive int, got {value!r}")
        if not 0 <= reinitialize <= 1 or not 0 <= ess_threshold <= 1:
            raise ValueError(
                f"reinitialize and ess_threshold are shares in [0, 1], got {reinitialize}, {ess_threshold}"
            )
        if not 0 <= regularization < math.inf or not limit > 0:
            raise ValueError(f"regularization >= 0 and limit > 0 are wanted, got {regularization} and {limit}")
        if restart not in ("base", "data"):
            raise ValueError(f"restart is 'base' or 'data', got {restart!r}")
        able = persistent and kernel.adjusted and restart == "base"
        weighted = able if weighted is None else weighted
        if weighted and not able:
            raise TypeError(
                "weighted=True needs persistent chains, a kernel that accepts or rejects (mala, hmc) and "
                "restart='base': weights of chains that start elsewhere, or do not keep the model invariant, are not "
                "known"
            )
        self.persistent, self.steps, self.kernel, self.capacity = persistent, steps, kernel, capacity
        self.reinitialize, self.restart, self.weighted = float(reinitialize), restart, bool(weighted)
        self.ess_threshold, self.regularization, self.limit = float(ess_threshold), float(regularization), float(limit)
        self.register_buffer("log_step", torch.zeros(()))
        self.register_buffer("moved", torch.zeros((), dtype=torch.long))
        self._warned = False

    def attach(self, model: Any) -> None:
        """Allocate the buffer."""
        base = model.core.base
        if base is None and self.persistent and (self.weighted or self.restart == "base"):
            raise TypeError("chains start from the model's base and it has none; use restart='data', or give it a base")
        if base is not None and not base.samplable and self.restart == "base" and self.persistent:
            raise TypeError(f"chains start from the base and {base.name()} cannot be sampled; use restart='data'")
        dim = math.prod(model.event_shape)
        self.log_step.fill_(math.log(self.kernel.step_size or 0.5 * self.kernel.initial_step_size(dim)))
        self.buffer = ReplayBuffer(self.capacity, model.event_shape) if self.persistent else None

    def prepare(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> None:
        """Start the chains, their labels dealt out evenly."""
        if self.buffer is None:
            return
        labels = None
        if label is not None:
            kinds = torch.arange(NULL if model.dropout > 0 else 0, model.num_classes, device=x.device)
            if self.capacity < len(kinds):
                raise ValueError(f"{len(kinds)} kinds of labels need as many chains; raise capacity={self.capacity}")
            labels = kinds.repeat(-(-self.capacity // len(kinds)))[: self.capacity]
        self.buffer.fill(self._restarts(model, self.capacity, labels, x, label, generator), labels)
        if self.weighted:
            self.buffer.energy.copy_(model.core.base_energy(self.buffer.x, labels))

    def loss(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """Move the chains, then E at data minus E at chains."""
        self._measured = {}
        if self.buffer is None:
            chains, own, weights = x, label, None
            moved = self._move(model, chains, own, generator)
        elif self.weighted:
            moved, own, weights = self._weighted(model, x, label, generator)
        else:
            slots = self.buffer.pick(label, generator, len(x))
            own, weights = label, None
            chains = self._reborn(model, self.buffer.x[slots], own, x, generator)[0]
            moved = self._move(model, chains, own, generator)
            self.buffer.store(slots, moved.x.reshape(len(slots), *model.event_shape), moved.energy)
        negatives = moved.x.reshape(-1, *model.event_shape)
        both = torch.cat([x, negatives])
        labels = None if label is None else torch.cat([label, own])  # pyright: ignore[reportArgumentType, reportCallIssue]
        core = model.core
        tilt = core.tilt(both, labels)
        energy = tilt + core.base_energy(both, labels) + core.constant(labels)
        data, fake = energy[: len(x)], energy[len(x) :]
        loss = contrastive_divergence(data, fake, weights)
        self._check(data.detach(), fake.detach(), math.prod(model.event_shape))
        self._measured |= {
            "energy_data": data.detach().mean(),
            "energy_model": fake.detach().mean() if weights is None else (weights * fake.detach()).sum(),
        }
        if "log_z" in self._measured:
            self._measured["nll"] = self._measured["energy_data"] + self._measured["log_z"]
        if self.regularization:
            loss = loss + self.regularization * (tilt[: len(x)].square().mean() + tilt[len(x) :].square().mean())
        return loss

    # ----------------------------------------------------------------- chains

    def _move(self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator) -> State:
        """k transitions, then one step of the adaptation of the step size."""
        target = ChainTarget(model.core, model.event_shape, label)
        return self._run(model, target, self._start(target, x), generator)

    def _start(self, target: ChainTarget, x: Tensor) -> State:
        try:
            return self.kernel.init(target, x.detach().flatten(1))
        except NonFinite as error:
            raise NonFinite(
                f"contrastive divergence: {error}. The energies are no longer finite where the chains are: lower lr, "
                "tighten clip, or set regularization="
            ) from error

    def _run(self, model: Any, target: ChainTarget, state: State, generator: torch.Generator) -> State:
        tune = Tune(self.log_step.exp(), model._spread())
        infos: list[Info] = []
        for _ in range(self.steps):
            state, info = self.kernel.step(target, state, tune, self.kernel.noise(state, generator))
            infos.append(info)
        acceptance = torch.stack([info.acceptance.mean() for info in infos]).mean()
        diverged = torch.stack([info.divergent.float().mean() for info in infos]).mean()
        self._measured |= {
            "acceptance": acceptance, "chain_diverged": diverged, "step_size": self.log_step.exp().clone(),
        }  # fmt: skip
        self.moved += 1
        if self.kernel.step_size is None:
            self.log_step += 0.2 * (acceptance - self.kernel.target_acceptance)
        return state

    def _weighted(
        self, model: Any, x: Tensor, label: Tensor | None, generator: torch.Generator
    ) -> tuple[State, Tensor | None, Tensor]:
        """Reweigh all chains to the present parameters, resample, move; weights sum to 1 within the batch's labels."""
        buffer = self.buffer
        assert buffer is not None
        own = None if label is None else buffer.label
        dealt = set(buffer.label.unique().tolist())
        wanted = {NULL} if label is None else set(label.unique().tolist())
        if not wanted <= dealt or (label is None and dealt != {NULL}):
            raise ValueError(
                f"the batch has labels {sorted(wanted)} and the chains {sorted(dealt)} (-1: none), which were dealt "
                "out at the first batch: train with labels throughout or without, hiding them by dropout= alone"
            )
        chains, fresh = self._reborn(model, buffer.x, own, x, generator)
        target = ChainTarget(model.core, model.event_shape, own)
        state = self._start(target, chains)
        with torch.no_grad():
            before = torch.where(fresh, model.core.base_energy(chains, own), buffer.energy)
        # a chain drawn anew from the base has weight e^(−E) / q, the others what the update of θ multiplies them by
        buffer.log_weight.copy_(torch.where(fresh, 0.0, buffer.log_weight) + before - state.energy)
        order, resampled = buffer.resample(self.ess_threshold, generator)
        moved = self._run(model, target, state.select(order), generator)
        buffer.x.copy_(moved.x.reshape(buffer.x.shape))
        buffer.energy.copy_(moved.energy)
        level = buffer.log_means()
        weights = (buffer.log_weight - level).exp()
        share = torch.ones_like(weights)
        if label is not None:
            for value in buffer.label.unique().tolist():
                chains_of = buffer.label == value
                share[chains_of] = (label == value).to(share).mean() * len(buffer) / chains_of.sum()
        weights = share * weights / len(buffer)
        self._measured |= {
            "log_z": (share * level).mean(),
            "ess": 1 / ((weights / weights.sum()).square().sum() * len(buffer)),
            "resampled": float(resampled),
        }
        return moved, own, weights

    def _reborn(
        self, model: Any, chains: Tensor, label: Tensor | None, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The chains with a share of them drawn anew, and which."""
        if not self.reinitialize:
            return chains, torch.zeros(len(chains), dtype=torch.bool, device=x.device)
        fresh = torch.rand(len(chains), generator=generator, device=x.device) < self.reinitialize
        new = self._restarts(model, len(chains), label, x, None, generator, rows=True)
        return torch.where(fresh.reshape(-1, *[1] * (x.ndim - 1)), new, chains), fresh

    def _restarts(
        self,
        model: Any,
        n: int,
        label: Tensor | None,
        x: Tensor,
        own: Tensor | None,
        generator: torch.Generator,
        rows: bool = False,
    ) -> Tensor:
        """States for chains to start from: draws of the base, or noised data (with the right label where known)."""
        if self.restart == "base":
            return model.sample_base(n, label, generator)
        if rows and n == len(x):
            chosen = x  # chain i has the label of datum i
        elif label is not None and own is not None:
            picks = torch.randint(len(x), (n,), generator=generator, device=x.device)
            for value in label.unique().tolist():
                pool = (own == value).nonzero()[:, 0]
                rows_of = (label == value).nonzero()[:, 0]
                if len(pool):
                    draws = torch.randint(len(pool), (len(rows_of),), generator=generator, device=x.device)
                    picks[rows_of] = pool[draws]
            chosen = x[picks]
        else:
            chosen = x[torch.randint(len(x), (n,), generator=generator, device=x.device)]
        noise = torch.randn(chosen.shape, generator=generator, dtype=x.dtype, device=x.device)
        return chosen + 0.1 * model._spread().sqrt().reshape(model.event_shape) * noise

    # ----------------------------------------------------------------- health

    def _check(self, data: Tensor, fake: Tensor, dim: int) -> None:
        gap = float(fake.mean() - data.mean())
        bound = self.limit * (dim + 10)
        if not math.isfinite(gap) or abs(gap) > bound:
            raise NonFinite(
                f"contrastive divergence has diverged: the mean energy is {float(data.mean()):.4g} at data and "
                f"{float(fake.mean()):.4g} at chains, a gap beyond {bound:.4g}. Energies grow faster than the chains "
                "can follow: lower lr, raise steps, set regularization=, or use kernel='mala' with an adapted step size"
            )
        acceptance, diverged = float(self._measured["acceptance"]), float(self._measured["chain_diverged"])
        settled = self.kernel.step_size is not None or int(self.moved) > 50  # a step size that adapts takes its time
        if not self._warned and settled and (acceptance < 0.02 or diverged > 0.2):
            self._warned = True
            warnings.warn(
                f"contrastive divergence: {acceptance:.1%} of the chains' proposals are accepted and {diverged:.1%} "
                f"diverge at step size {float(self._measured['step_size']):.3g}, so the chains hardly move: lower lr, "
                "set regularization=, or leave the kernel's step_size to be adapted",
                SamplingWarning,
                stacklevel=3,
            )
