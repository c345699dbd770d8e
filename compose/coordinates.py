"""Names of coordinates: what rows of a table, titles of pictures and warnings call them."""

import itertools

from torch import Tensor

from boltzmix.compose.variable import State


def variables_of(x: State) -> dict[str, Tensor]:
    """The tensors of a state by name; the one of a state without names is called x."""
    return {"x": x} if isinstance(x, Tensor) else {name or "x": t for name, t in x.items()}


def labels(x: State, lead: int = 2) -> list[str]:
    """One name for each coordinate: ``mu``, ``theta[0]``, ``L[1,2]``; ``lead`` dimensions are not of the event.

    Example:
        >>> import torch
        >>> labels({"mu": torch.zeros(4, 10), "theta": torch.zeros(4, 10, 2)})
        ['mu', 'theta[0]', 'theta[1]']
    """
    found = []
    for name, t in variables_of(x).items():
        places = itertools.product(*(range(s) for s in t.shape[lead:]))
        found += [f"{name}[{','.join(map(str, place))}]" if place else name for place in places]
    return found


class Coordinates:
    """The coordinates of chains ``(chains, draws, *event)``, one after the other, by place or by name."""

    def __init__(self, x: State) -> None:
        """Lay out the variables of ``x``."""
        self.names = labels(x)
        self.tensors = [t.detach().reshape(*t.shape[:2], t[0, 0].numel()) for t in variables_of(x).values()]
        self._place = {name: k for k, name in enumerate(self.names)}

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)

    def __getitem__(self, k: int) -> Tensor:
        """The draws ``(chains, draws)`` of one."""
        for t in self.tensors:
            if k < t.shape[2]:
                return t[:, :, k]
            k -= t.shape[2]
        raise IndexError(k)

    def choose(self, names: str | list[str] | tuple[str, ...]) -> list[int]:
        """Places by name; the name of a variable stands for all of its coordinates.

        Raises:
            ValueError: a name that is neither a variable nor a coordinate.
        """
        found = []
        for name in [names] if isinstance(names, str) else names:
            own = [k for k, label in enumerate(self.names) if label == name or label.startswith(f"{name}[")]
            if not own:
                known = ", ".join(self.names[:8]) + (", …" if len(self.names) > 8 else "")
                raise ValueError(f"there is no parameter {name!r} among {known}")
            found += own
        return found
