"""A warm-up for people who write their own loop over a kernel."""

import torch
from torch import Tensor

from boltzmix.compose.adaptation.base import Adaptation
from boltzmix.compose.kernels.base import KernelLike, State, Target, check_kernel


def window_adaptation(
    kernel: KernelLike,
    target: Target,
    x: Tensor,
    *,
    warmup: int = 500,
    adaptation: Adaptation | None = None,
    seed: int | torch.Generator | None = None,
) -> KernelLike:
    """A kernel with step size, mass and whatever else it leaves open tuned to a target.

    Args:
        kernel: any kernel.
        target: what :func:`~boltzmix.compose.flat.ravel` gives.
        x: starts of the chains ``(N, D)``; many chains learn faster.
        warmup: transitions.
        adaptation: None is the kernel's own way; see :class:`~boltzmix.compose.adaptation.windows.Windows`.
        seed: an int, a generator, or None.

    Example:
        >>> import torch
        >>> from boltzmix.compose import HMC, Gaussian, ravel
        >>> target = ravel(Gaussian(torch.zeros(3), torch.tensor([1e-4, 1.0, 1e4])))
        >>> kernel = window_adaptation(HMC(), target, torch.randn(64, 3), seed=0)
        >>> bool((kernel.inverse_mass.variances.log10() - torch.tensor([-4.0, 0.0, 4.0])).abs().max() < 0.2)
        True
    """
    return warm_up(kernel, target, x, warmup=warmup, adaptation=adaptation, seed=seed)[0]


def warm_up(
    kernel: KernelLike,
    target: Target,
    x: Tensor,
    *,
    warmup: int = 500,
    adaptation: Adaptation | None = None,
    seed: int | torch.Generator | None = None,
) -> tuple[KernelLike, State]:
    """:func:`window_adaptation`, and where its chains stand at the end.

    Raises:
        TypeError: no kernel, or the class of one.
        ValueError: nothing to adapt, or no transitions to do it in.
    """
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
        raise ValueError(f"warmup is an int >= 1, got {warmup!r}")
    check_kernel(kernel, "window_adaptation(kernel, target, x)")
    if not (kernel.adapts or adaptation is not None):
        raise ValueError(f"{kernel!r} leaves nothing to adapt; leave its step_size out")
    generator = seed
    if not isinstance(seed, torch.Generator):
        generator = torch.Generator(device=x.device)
        generator.manual_seed(int(torch.randint(2**31, ()).item()) if seed is None else seed)
    assert isinstance(generator, torch.Generator)
    state = kernel.init(target, x, generator)
    tuner = (adaptation or kernel.adaptation()).begin(kernel, target, state, warmup, generator)
    for _ in range(warmup):
        before = state
        state, info = kernel.step(target, before, tuner.tune, kernel.noise(before, generator))
        tuner.update(before, state, info)
        state = tuner.carry(state)
    return kernel.tuned(tuner.finish()), state
