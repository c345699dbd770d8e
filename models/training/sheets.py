"""Sample sheets: pictures of draws from the averaged weights while a model trains.

Drawing changes nothing about the run: weights, buffers, modes and generators are as they were, so a run with sheets
has the weights of one without.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.models.training.seeding import derive, global_state_kept

SheetSampler = Sampler | Callable[[Any, int, torch.Generator], Any]
POINTS, IMAGES = 1000, 36


class Sheets:
    """Draws of a model as it trains, one picture each time, from the same noise.

    Args:
        folder: gets ``step-0001000.png`` and so on.
        every: steps between sheets.
        model: a term, or anything that ``sampler`` draws from; of a model over x and latents, x is shown.
        sampler: a boltzmix sampler or a function ``(model, n, generator) -> states``; None draws exactly where the
            model can, by 24 steps of reverse diffusion where it is noised, else by SMC with 16 levels.
        seed: of every sheet.

    Raises:
        ValueError: a model that cannot be sampled.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int, model: nn.Module, sampler: SheetSampler | None, seed: int
    ) -> None:
        """Check that the model can be drawn from."""
        if not isinstance(model, Term) and not getattr(model, "samplable", False) and not callable(sampler):
            raise ValueError(
                f"sheets= draws from the model and {type(model).__name__} is no term; pass "
                "sheet_sampler=, a function (model, n, generator) -> states"
            )
        if sampler is not None and not isinstance(sampler, Sampler) and not callable(sampler):
            raise TypeError(f"sheet_sampler is a sampler or a function, got {type(sampler).__name__}")
        self.folder, self.every, self.model, self.sampler, self.seed = Path(folder), every, model, sampler, seed

    def draw(self, step: int, parameters: Sequence[nn.Parameter], averages: Sequence[Tensor]) -> Path | None:
        """Write the sheet of a step; a model that cannot be sampled yet is a warning, not the end of its training."""
        from boltzmix.compose.pictures import plot_states

        device = parameters[0].device
        with undisturbed(self.model, parameters, averages), global_state_kept(device):
            torch.manual_seed(derive(self.seed, "sheet"))
            generator = torch.Generator(device=device).manual_seed(derive(self.seed, "sheet"))
            try:
                x = self._states(generator)
                if isinstance(x, Mapping) and "x" in x:
                    x = x["x"]
            except (ValueError, TypeError, RuntimeError) as error:
                warnings.warn(f"no sheet at step {step}: {error}", RuntimeWarning, stacklevel=3)
                return None
        path = self.folder / f"step-{step:07d}.png"
        plot_states(x, path, title=f"step {step:,}")
        return path

    def _states(self, generator: torch.Generator) -> Any:
        model: Any = self.model
        variables = getattr(model, "variables", None)
        if isinstance(variables, Mapping):
            variables = variables.get("x")
        n = POINTS if isinstance(variables, Variable) and tuple(variables.shape) == (2,) else IMAGES
        if self.sampler is not None and not isinstance(self.sampler, Sampler):
            return self.sampler(model, n, generator)
        if self.sampler is None and getattr(model, "samplable", False):
            return model.sample(n, generator)
        from boltzmix.compose.sample import sample
        from boltzmix.compose.samplers.reverse import Reverse
        from boltzmix.compose.samplers.smc import SMC

        sampler = self.sampler or (Reverse(steps=24) if model.path == "noised" else SMC(levels=16))
        return sample(model, n, sampler=sampler, seed=generator, progress=False).x


@contextlib.contextmanager
def undisturbed(model: nn.Module, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Other values in the parameters and evaluation mode for a ``with`` block; then everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        own = [t.detach().clone() for t in (*parameters, *model.buffers())]
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for t, value in zip((*parameters, *model.buffers()), own, strict=True):
                t.copy_(value)
