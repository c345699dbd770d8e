r"""Flow matching: a velocity that carries noise to data along straight lines.

With :math:`x_t = (1 - t)\, x_0 + t\, \varepsilon` the network is regressed on :math:`\varepsilon - x_0` at uniform t.
What it then is depends on how x0 and ε were paired in training.

*Independently* (``path="linear"``: Lipman et al., Liu et al.). The minimiser is
:math:`v = E[\varepsilon - x_0 \mid x_t]`, from which the score follows at every level by
:math:`t = \sigma / (1 + \sigma)`, :math:`\hat\varepsilon = (1 - t)(x_\sigma + v)`: a noised term like any diffusion
model.

*By optimal transport within the mini-batch* (``path="ot"``: Tong et al.). ε then depends on x0, so x_t is not
data plus independent noise and :math:`E[\varepsilon | x_t]` is no score: nothing is known of p(x; σ). But each of x0
and ε alone keeps its law, so the equation :math:`dx/dt = v` still carries N(0, I) at t = 1 to the data at t = 0. The
model is that flow: a static, normalised term with draws and an exact log-density; it refuses what needs noise levels.
Rows are paired within their label, since across labels the noise of each class would not be N(0, I).
"""

import copy
import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Term
from boltzmix.models import schedules
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.labels import Batch
from boltzmix.models.normal import log_standard_normal
from boltzmix.models.ode import Method, Solver
from boltzmix.models.probability_flow import Field, integrate


class FlowMatching(Diffusion):
    r"""Conditional flow matching (see the module's page for the equations).

    Args:
        net: called ``net(x_t, c_noise, label)`` with c_noise = ¼ ln(t / (1 − t)); its output is the velocity ε − x0.
        event_shape: shape of one draw.
        path: ``"linear"``, a noised term with a score at every level, or ``"ot"``, a static normalised term.
        method, steps: of the solver of ``"ot"``: see :class:`~boltzmix.models.ode.Solver`. Its density is
            exact up to the solver and costs 4 · ``steps`` forwards with D vector–Jacobian products each.
        t_range: times of training; before the first and after the last the velocity is that of the end.
        options: further arguments of :class:`~boltzmix.models.diffusion.Diffusion`: ``num_classes``, ``dropout``,
            ``loc``, ``sigma_data`` (for the coarse form alone), ``weight``, and ``noise`` (None, or mean and standard
            deviation of ln σ = logit t: the logit-normal times of rectified flows).

    Raises:
        ValueError: options that make no sense.
        TypeError: noise levels, or a coarse form, asked of the static ``"ot"``.

    Source: Y. Lipman et al. (2023), Flow matching for generative modeling. X. Liu, C. Gong, Q. Liu (2023), Flow
    straight and fast. A. Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch
    optimal transport.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import MLP
        >>> p = FlowMatching(MLP(2, hidden=8), (2,))
        >>> p.path, p.score(torch.zeros(5, 2), 0.5).shape
        ('noised', torch.Size([5, 2]))
        >>> q = FlowMatching(MLP(2, hidden=8), (2,), path="ot", steps=4)
        >>> q.path, q.log_prob(torch.zeros(5, 2)).shape, q.sample(3).shape
        ('static', torch.Size([5]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        path: Literal["linear", "ot"] = "linear",
        method: Method = "rk4",
        steps: int = 32,
        t_range: tuple[float, float] = (1e-3, 0.999),
        **options: Any,
    ) -> None:
        """Check the arguments and wrap the network."""
        if path not in ("linear", "ot"):
            raise ValueError(f"path is 'linear' or 'ot', got {path!r}")
        for name in ("parameterization", "schedule"):
            if name in options:
                raise ValueError(f"flow matching has its own {name}; Diffusion takes others")
        if path == "ot" and options.get("weight", "own") != "own":
            raise ValueError(
                "weights compare noise predictions, which optimal-transport pairs do not give; leave it out"
            )
        line = schedules.FlowMatching(*t_range)
        super().__init__(net, event_shape, parameterization="velocity", schedule=line, **options)
        self.coupling = path
        self.solver = Solver(method, steps)
        self.levels = self.sigma_range  # of the velocity; a static term has no noise levels
        if path == "ot":
            self.path, self.sigma_range = "static", (0.0, math.inf)
            self.has_energy = self.normalized = self.calibrated = self.samplable = True

    # ---------------------------------------------------------------- as a flow

    def _group(self) -> Hashable | None:
        return None if self.coupling == "ot" else super()._group()

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        self._match(x)
        keep = torch.is_grad_enabled() and self._needs_graph(x)
        with torch.set_grad_enabled(keep):
            z, total = integrate(self._velocity(x), x - self.core.loc, 0.0, 1.0, self.solver, keep=keep)
            return -log_standard_normal(z) - total[0]

    def _score(self, x: Any, sigma: Any) -> Tensor:
        if self.coupling != "ot":
            return super()._score(x, sigma)
        return Term._energy_and_score(self, x, sigma)[1]  # pyright: ignore[reportReturnType]

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        own = self._weights()
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=own.dtype, device=own.device)
        with torch.no_grad():
            x, _ = integrate(self._velocity(noise), noise, 1.0, 0.0, self.solver, divergence=False)
            return x + self.core.loc

    def _velocity(self, like: Tensor) -> Field:
        label = self._label_rows(len(like), like.device)
        low, high = self.levels

        def field(x: Tensor, t: float) -> Tensor:
            sigma = min(max(t / (1 - t) if t < 1 else math.inf, low), high)
            return self.core(x, torch.tensor(sigma, dtype=x.dtype, device=x.device), [label])

        return field

    def _rows(self) -> int:
        return self.solver.evaluations if self.coupling == "ot" else 1

    # ---------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity; all randomness comes from ``generator``."""
        if self.coupling != "ot":
            return super().loss(batch, generator)
        x0, label = self._training_batch(batch, generator)
        x0 = x0 - self.core.loc
        trained = copy.copy(self)  # the same network at the levels of its velocity
        trained.path, trained.sigma_range = "noised", self.levels
        sigma = trained._draw_levels(len(x0), generator, x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        noise = noise[pair(x0, noise, label)]
        return trained._loss(x0, noise, sigma, label)


def pair(x0: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
    """For each row of x0 the row of noise that optimal transport gives it, within its label; ``(N,)``.

    The permutation minimises Σ ‖x0_i − ε_{π(i)}‖² over all permutations that keep to the labels' rows.
    """
    from scipy.optimize import linear_sum_assignment

    order = torch.arange(len(x0), device=x0.device)
    groups = [order.clone()] if label is None else [torch.nonzero(label == k)[:, 0] for k in label.unique()]
    for rows in groups:
        if len(rows) > 1:
            # the squares of each side alone do not depend on the permutation
            gain = x0[rows].flatten(1).double() @ noise[rows].flatten(1).double().mT
            _, columns = linear_sum_assignment(-gain.detach().cpu().numpy())
            order[rows] = rows[torch.from_numpy(columns).to(rows.device)]
    return order
