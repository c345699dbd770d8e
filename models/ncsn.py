r"""Noise-conditional score networks: the recipe from which diffusion models grew.

Geometric levels :math:`\sigma_1 > \dots > \sigma_L`, denoising score matching at each with weight λ(σ) = σ²,

.. math:: \frac1L \sum_i \frac{\sigma_i^2}{D}
          E\,\Big\|s(x_0 + \sigma_i\varepsilon; \sigma_i) + \frac{\varepsilon}{\sigma_i}\Big\|^2 ,

and draws by annealed Langevin dynamics: at each level T steps
:math:`x \leftarrow x + \tfrac{\alpha_i}{2} s(x; \sigma_i) + \sqrt{\alpha_i}\, z` of size
:math:`\alpha_i = \epsilon\, \sigma_i^2 / \sigma_L^2`. A kernel's step size is h = α/2, so that
``Annealed(kernel=ULA(ε / 2), sweeps=T)`` is that loop. Langevin dynamics at the last level alone cannot cross
between modes and finds their weights only by where it starts; the large levels decide them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.models.diffusion import Diffusion
from boltzmix.models.schedules import VE


class NCSN(Diffusion):
    r"""A score network conditioned on a ladder of noise levels.

    Args:
        net: called ``net(x, c_noise, label)`` with the state as it is and c_noise = ¼ ln σ; see
            :class:`~boltzmix.models.denoiser.Denoiser`.
        event_shape: shape of one draw.
        levels: L, the number of levels.
        sigma_range: the smallest and the largest level. It is trained at its levels only; between them a smooth
            network interpolates.
        parameterization: ``"score"``, the network returns s (Song and Ermon, 2019), or ``"epsilon"``, it returns −σ s,
            which has the same size at every level (their improved version of 2020).
        options: further arguments of :class:`~boltzmix.models.denoiser.Denoiser`.

    Raises:
        ValueError: fewer than two levels, or other parameterizations.

    Source: Y. Song, S. Ermon (2019), Generative modeling by estimating gradients of the data distribution; (2020),
    Improved techniques for training score-based generative models.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import MLP
        >>> p = NCSN(MLP(2, hidden=8), (2,), levels=3, sigma_range=(0.01, 1.0))
        >>> [round(s, 3) for s in p.ladder().tolist()]
        [1.0, 0.1, 0.01]
    """

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        levels: int = 10,
        sigma_range: tuple[float, float] = (0.01, 1.0),
        parameterization: Literal["score", "epsilon"] = "score",
        **options: Any,
    ) -> None:
        """Check the ladder and wrap the network."""
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels is an int >= 2, got {levels!r}")
        if parameterization not in ("score", "epsilon"):
            raise ValueError(
                f"parameterization is 'score' or 'epsilon', got {parameterization!r}; Diffusion has others"
            )
        for name in ("schedule", "noise", "weight"):
            if name in options:
                raise ValueError(f"the recipe fixes {name}; Diffusion(schedule='ve') takes it")
        schedule = VE(float(sigma_range[0]), float(sigma_range[1]))
        super().__init__(net, event_shape, parameterization=parameterization, schedule=schedule, **options)
        self.levels = levels

    def ladder(self) -> Tensor:
        """σ_1 > … > σ_L, float64."""
        return self._log_quantile(torch.linspace(1, 0, self.levels, dtype=torch.float64)).exp()

    def step_sizes(self, step_size: float) -> Tensor:
        """α_i = ε σ_i² / σ_L² for ε = ``step_size``, ``(L,)``; a Langevin kernel's h is half of it."""
        if not step_size > 0:
            raise ValueError(f"step_size is positive, got {step_size!r}")
        ladder = self.ladder()
        return step_size * (ladder / ladder[-1]) ** 2

    def _log_quantile(self, share: Tensor) -> Tensor:
        """One of the levels, each for an equal part of the shares."""
        rung = (share * self.levels).long().clamp(max=self.levels - 1)
        return super()._log_quantile(rung.double() / (self.levels - 1))
