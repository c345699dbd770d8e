r"""Diffusion models: a network that knows the score of noised data, and no energy.

Whatever a network is trained to predict, and along whatever schedule :math:`x_t = \alpha_t (x_0 + \sigma\varepsilon)`,
the term speaks the one coordinate :math:`x_\sigma = x_0 + \sigma\varepsilon`: it feeds the network
:math:`\alpha_t x_\sigma` with :math:`\tfrac14\ln\sigma` (any invertible function of the time serves) and turns the
output into the predicted noise :math:`\hat\varepsilon` by the table of :mod:`boltzmix.models.schedules`; the score is
:math:`-\hat\varepsilon/\sigma`.

**Weights.** In the units of the noise every loss is :math:`E\, w(\sigma) \|\hat\varepsilon - \varepsilon\|^2`:

==============  ============================================================  =====================================
``weight``      :math:`w(\sigma)`, levels drawn with density p(ln σ)          what it is
==============  ============================================================  =====================================
``"own"``       squared error of the network's own output                     ε: the simple loss; velocity: flow
                                                                              matching; score: λ(σ) = σ_t²
``"epsilon"``   1                                                             Ho et al.'s simple loss
``"edm"``       :math:`(\sigma^2 + \sigma_d^2) / \sigma_d^2`                  Karras et al.'s
``"elbo"``      :math:`1 / p(\ln\sigma)`, plus prior and decoder terms        minus the bound on log p, nats per
                                                                              coordinate, whatever p is
==============  ============================================================  =====================================

The last is the continuous-time variational bound (Kingma et al., 2021):
:math:`-\log p(x_0) \le KL(q(x_{\sigma_T}|x_0) \| N(\mathrm{loc}, (\sigma_T^2 + \sigma_d^2) I))
+ \int_{\sigma_1}^{\sigma_T} E\|\hat\varepsilon - \varepsilon\|^2\, d\ln\sigma
- E \log N(x_0; x_{\sigma_1}, \sigma_1^2 I)`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated
from boltzmix.compose.variable import expand_rows
from boltzmix.models.denoiser import Coordinates, Denoiser, scaled
from boltzmix.models.schedules import EDM, VP, FlowMatching, Schedule, named

_TARGETS = ("edm", "epsilon", "sample", "v", "velocity", "score", "eps", "x0", "v_prediction", "flow")
_WEIGHTS = ("own", "epsilon", "edm", "elbo")


class Diffusion(Denoiser):
    r"""Score-based diffusion.

    By default, with Karras et al.'s preconditioning,

    .. math:: \nabla\log p(x;\sigma) = -\frac{x}{s^2} + \frac{\sigma_d r}{\sigma s} F(x/s, \tfrac14\ln\sigma),

    and otherwise :math:`-\hat\varepsilon/\sigma` for a network that predicts something else (see the module's page).
    The network's output has the shape of x.

    Args:
        net: called ``net(x, c_noise, label)``; see :class:`~boltzmix.models.denoiser.Denoiser`.
        event_shape: shape of one draw.
        parameterization: what the network predicts: ``"edm"`` (F above), ``"epsilon"``, ``"sample"`` (x0), ``"v"``
            (αε − σ_t x0), ``"velocity"`` (ε − x0 along the straight path) or ``"score"`` (of x_t).
        schedule: a :class:`~boltzmix.models.schedules.Schedule` or its name (``"ddpm"``, ``"linear"``, ``"cosine"``,
            ``"ve"``, ``"flow"``, ``"edm"``). None: ``"flow"`` for velocities, the preconditioning above for
            ``"edm"``, ``"ddpm"`` for the others. It gives the network's input scale, the default ``sigma_range`` and,
            by default, the levels of training.
        weight: of the loss; see the module's page.
        noise: mean and standard deviation of ln σ in training, None for uniform ln σ, ``"schedule"`` for the levels
            that the schedule's time visits when it is uniform. ``"auto"`` is that, and (−1.2, 1.2) for EDM. Along
            the straight path ln σ is the logit of t, so that (0, 1) is the logit-normal time of rectified flows.
        options: the further arguments of :class:`~boltzmix.models.denoiser.Denoiser`.

    Raises:
        ValueError: a prediction that the schedule does not define, a ``sigma_range`` beyond the schedule's, a noise
            level outside ``sigma_range``, a label out of range.

    Source: J. Ho, A. Jain, P. Abbeel (2020), Denoising diffusion probabilistic models. T. Salimans, J. Ho (2022),
    Progressive distillation (v). T. Karras, M. Aittala, T. Aila, S. Laine (2022), Elucidating the design space of
    diffusion-based generative models. D. Kingma, T. Salimans, B. Poole, J. Ho (2021), Variational diffusion models.
    Conditioning by dropout: J. Ho, T. Salimans (2022), Classifier-free diffusion guidance.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import MLP
        >>> p = Diffusion(MLP(2, hidden=8, num_classes=3), (2,), num_classes=3)
        >>> p.given(label=1).score(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
        >>> q = Diffusion(MLP(2, hidden=8), (2,), parameterization="v", schedule="cosine")
        >>> q.score(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    has_energy = False

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        parameterization: str = "edm",
        schedule: Schedule | str | None = None,
        weight: str = "own",
        noise: tuple[float, float] | Literal["schedule", "auto"] | None = "auto",
        **options: Any,
    ) -> None:
        """Check what the network predicts and wrap it."""
        if parameterization not in _TARGETS:
            raise ValueError(f"parameterization is one of {list(_TARGETS[:6])}, got {parameterization!r}")
        if weight not in _WEIGHTS:
            raise ValueError(f"weight is one of {list(_WEIGHTS)}, got {weight!r}")
        if isinstance(schedule, str):
            schedule = named(schedule)
        if schedule is None and parameterization != "edm":
            schedule = FlowMatching() if parameterization in ("velocity", "flow") else VP.ddpm()
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(f"schedule is a Schedule, its name or None, got {type(schedule).__name__}")
        self_timed = schedule is not None and not isinstance(schedule, EDM)
        if noise == "auto":
            noise = "schedule" if self_timed else (-1.2, 1.2)
        if isinstance(noise, str) and (noise != "schedule" or not self_timed):
            raise ValueError(f'noise="schedule" goes with a schedule that has a time of its own, got {noise!r}')
        if schedule is not None:
            options = _of_schedule(schedule, options)
        super().__init__(net, event_shape, noise=None if isinstance(noise, str) else noise, **options)
        self.schedule = schedule
        self.parameterization = parameterization if schedule is None else schedule.resolve(parameterization)
        self.weight = weight
        self.by_schedule = noise == "schedule"

    def _group(self) -> Hashable | None:
        return (super()._group(), self.parameterization, self.schedule)

    # ------------------------------------------------------------ evaluation

    def _coordinates(self, views: Sequence[Denoiser], x: Tensor, level: Tensor) -> list[Coordinates]:
        if self.schedule is None:
            return super()._coordinates(views, x, level)
        width = (1 / self.schedule.alpha(level)).to(x.dtype)  # the networks see α x = x / width
        found: dict[int, Coordinates] = {}
        for view in views:
            if id(view.core) not in found:
                found[id(view.core)] = Coordinates(x - view.core.loc, width, width)
        return [found[id(view.core)] for view in views]

    def _inputs(self, views: Sequence[Denoiser], coordinates: Sequence[Coordinates], x: Tensor) -> Tensor:
        """What the networks of k views read, k · N rows."""
        return scaled(coordinates, x)

    def _evaluate_views(
        self, views: Sequence[Denoiser], x: Tensor, sigma: Tensor | None, energy: bool, score: bool
    ) -> list[Evaluated]:
        if not score:
            return [(None, None)] * len(views)
        level = self._level(x, sigma)
        coordinates = self._coordinates(views, x, level)
        out = self._network(views, self._inputs(views, coordinates, x), level)
        bases: dict[int, Tensor] = {}
        scores = []
        for c, rows in zip(coordinates, out.chunk(len(views)), strict=True):
            if self.schedule is not None:
                eps = self.schedule.eps(self.parameterization, rows, c.centred, level)
                scores.append((None, eps * expand_rows(-1 / level, x)))
                continue
            spread = expand_rows(c.spread, x)
            if id(c) not in bases:
                bases[id(c)] = -c.centred / spread**2
            scores.append((None, torch.addcmul(bases[id(c)], expand_rows(c.gain, x) / spread, rows)))
        return scores

    # -------------------------------------------------------------- training

    def _log_quantile(self, share: Tensor) -> Tensor:
        if not self.by_schedule:
            return super()._log_quantile(share)
        assert self.schedule is not None
        return self.schedule.quantile(share, self.sigma_range).log()

    def _log_density(self, sigma: Tensor) -> Tensor:
        if not self.by_schedule:
            return super()._log_density(sigma)
        assert self.schedule is not None
        return self.schedule.log_density(sigma, self.sigma_range)

    def _loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        own, of_noise = self._errors(x0, noise, sigma, label)
        if self.weight == "own":
            return own.square().flatten(1).mean()
        squares = of_noise.square().flatten(1).mean(1)
        if self.weight == "epsilon":
            return squares.mean()
        if self.weight == "edm":
            return (squares * (self.core.spread(sigma) / self.core.sigma_data) ** 2).mean()
        return (squares * (-self._log_density(sigma)).exp().to(squares)).mean() + self._outer_terms(x0)

    def _errors(self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Error of the network's output in the units of its loss, and error ε̂ − ε of the noise that it implies."""
        core, level = self.core, expand_rows(sigma, x0)
        x = x0 + level * noise
        if self.schedule is None:
            out = core(x / core.spread(level), sigma, [label])
            reduced = out * (core.gain(level) * level / core.sigma_data)
            own = reduced - self._target(x0, noise, sigma)
            return own, own * (-core.sigma_data / core.spread(level))
        alpha = expand_rows(self.schedule.alpha(sigma).to(x.dtype), x)
        own = core(alpha * x, sigma, [label]) - self.schedule.target(self.parameterization, x0, noise, sigma)
        # ε̂ is affine in the output, so its error is its linear part of the output's error
        of_noise = self.schedule.eps(self.parameterization, own, torch.zeros_like(x), sigma)
        return (of_noise if self.parameterization == "score" else own), of_noise

    def _outer_terms(self, x0: Tensor) -> Tensor:
        """Prior and decoder terms of the bound, nats per coordinate; x0 is centred."""
        low, high = self.sigma_range
        total = high**2 + self.core.sigma_data**2
        prior = 0.5 * (math.log(total / high**2) + (high**2 + x0.square().mean()) / total - 1)
        return prior + 0.5 * (1 + math.log(2 * math.pi * low**2))


def _of_schedule(schedule: Schedule, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the base class that a schedule fixes, checked against those given."""
    low, high = schedule.sigma_range
    given = tuple(options.get("sigma_range", (low, high)))
    if len(given) != 2 or given[0] < low * (1 - 1e-6) or given[1] > high * (1 + 1e-6):
        raise ValueError(f"sigma_range lies within the schedule's [{low:g}, {high:g}], got {given}")
    if options.get("sigma_detail", 0.0) != 0.0:
        raise ValueError("sigma_detail belongs to the preconditioning of schedule=None; leave it out with a schedule")
    own = schedule.sigma_data if isinstance(schedule, EDM) else options.get("sigma_data", 0.5)
    if options.get("sigma_data", own) != own:
        raise ValueError(f"the schedule has sigma_data={own}, got sigma_data={options['sigma_data']}; say it once")
    return {**options, "sigma_range": given, "sigma_data": own}
