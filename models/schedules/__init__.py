r"""Noise schedules: from the common coordinate σ to a network's own time and input.

Every term speaks of :math:`x_\sigma = x_0 + \sigma \varepsilon`. A network was trained on
:math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon`, which is :math:`\alpha_t x_\sigma` at
:math:`\sigma = \sigma_t / \alpha_t`. A schedule knows, for each σ, the network's time t and the factor
α on its input, and turns the network's output into the predicted noise
:math:`\hat\varepsilon = \mathbb{E}[\varepsilon \mid x_\sigma]`, from which the score is
:math:`-\hat\varepsilon / \sigma`:

==================  ===============================================  ==========================================
prediction          the network returns                              :math:`\hat\varepsilon`
==================  ===============================================  ==========================================
``"epsilon"``       :math:`\varepsilon`                              the output
``"sample"``        :math:`x_0`                                      :math:`(x_\sigma - x_0) / \sigma`
``"v_prediction"``  :math:`\alpha_t \varepsilon - \sigma_t x_0`      :math:`\alpha_t (v + \sigma_t x_\sigma)`
``"flow"``          :math:`\varepsilon - x_0`                        :math:`(1 - t)(x_\sigma + v)`
``"score"``         :math:`\nabla \log p_t(x_t)`                     :math:`-\sigma_t s`
``"edm"``           F of the EDM preconditioning                     see :class:`EDM`
==================  ===============================================  ==========================================

These forms keep float32 at small σ; only ``"sample"`` subtracts two nearly equal numbers.
Training goes the other way: :meth:`Schedule.target` is what a network should return for known x0 and ε, and
:meth:`Schedule.quantile` draws the levels that its time, uniform, visits. Times and factors are computed in float64
whatever the dtype of σ: they cost N numbers, not N images.
"""

from boltzmix.models.schedules.base import Schedule
from boltzmix.models.schedules.straight import FlowMatching
from boltzmix.models.schedules.variance_exploding import EDM, VE
from boltzmix.models.schedules.variance_preserving import VP, Cosine, LinearVP

__all__ = ["Schedule", "VP", "LinearVP", "Cosine", "VE", "EDM", "FlowMatching", "named"]

_NAMED = {"ddpm": VP.ddpm, "linear": LinearVP, "cosine": Cosine, "ve": VE, "flow": FlowMatching, "edm": EDM}


def named(schedule: str) -> Schedule:
    """The schedule of a name, with its usual numbers: ddpm, linear, cosine, ve, flow or edm.

    Raises:
        ValueError: another name.

    Example:
        >>> named("ve")
        VE(sigma_min=0.002, sigma_max=80.0, conditioning='sigma')
    """
    if schedule not in _NAMED:
        raise ValueError(f"schedules by name are {sorted(_NAMED)}, got {schedule!r}; or pass a Schedule")
    return _NAMED[schedule]()
