"""Where the names of a formula lead: weights that ship, files of ``boltzmix train``, folders of diffusers, terms."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boltzmix.compose.term import Term
from boltzmix.models.formula.grammar import FUNCTIONS
from boltzmix.models.load import load, names

_RESERVED = (*FUNCTIONS, "and", "or", "not", "else", "true", "false")


class Library:
    """Models by name, each loaded once: equal names are one object, so that they merge in a formula.

    Args:
        models: further names. A path ends in ``.safetensors``, with the ``.json`` that ``boltzmix train`` writes beside
            it, or is a folder of diffusers (see :func:`~boltzmix.models.adapters.folders.from_folder`); a term stands
            for itself. A name that ships with the package may be taken.
        device, dtype: where and as what the models are evaluated; by default as they are.

    Raises:
        ValueError: a name that formulas cannot hold.

    Example:
        >>> library = Library()
        >>> library.load("circle") is library.load("circle")
        True
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str] | Term] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check the names; nothing is loaded yet."""
        self.models = dict(models or {})
        for name in self.models:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or name in _RESERVED:
                raise ValueError(
                    f"a model is called by letters, digits and single underscores, and not {', '.join(_RESERVED)}; got "
                    f"{name!r}"
                )
        self.device, self.dtype = device, dtype
        self._loaded: dict[str, Term] = {}

    def names(self) -> list[str]:
        """The names that :meth:`load` knows, users' own first."""
        return [*self.models, *(name for name in names() if name not in self.models)]

    def load(self, name: str, quoted: bool = False) -> Term:
        """A model in evaluation mode.

        Args:
            name: one of :meth:`names`; a path, too, where it is ``quoted``.
            quoted: whether the formula has it in quotes.

        Raises:
            ValueError: an unknown name, a damaged file, or weights that are no density.
            FileNotFoundError: a missing file, by its name.
        """
        where: Any = self.models.get(name, name if name in names() else Path(name))
        key = name if not isinstance(where, Path) else str(where.resolve())
        if key not in self._loaded:
            if not isinstance(where, Term):
                where = self._read(name, where, quoted)
            if not isinstance(where, Term):
                raise ValueError(f"{name!r} is a {type(where).__name__}, which is no density")
            self._loaded[key] = self._placed(where)
        return self._loaded[key]

    def _read(self, name: str, where: str | os.PathLike[str], quoted: bool) -> Any:
        if name not in self.models and not isinstance(where, Path):
            return load(name)
        path = Path(where)
        if path.suffix == ".safetensors" or (not path.is_dir() and path.with_suffix(".safetensors").is_file()):
            for file in (path.with_suffix(".safetensors"), path.with_suffix(".json")):
                if not file.is_file():
                    beside = ", which `boltzmix train` writes beside the weights" if file.suffix == ".json" else ""
                    raise FileNotFoundError(f"{file} is missing{beside}")
            return load(path.stem, path.parent)
        if path.is_dir():
            from boltzmix.models.adapters.folders import from_folder

            return from_folder(path, device=self.device, dtype=self.dtype)
        if quoted and name not in self.models:
            raise FileNotFoundError(
                f"{name!r} is neither a model ({', '.join(self.names())}) nor a .safetensors file or a folder"
            )
        raise FileNotFoundError(f"there is no file and no folder {path} ({name})")

    def _placed(self, term: Term) -> Term:
        return term.to(device=self.device, dtype=self.dtype) if self.device or self.dtype else term
