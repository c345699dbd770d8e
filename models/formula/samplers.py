"""Samplers by name: ``annealed-uhmc:levels=64,sweeps=4``.

A name stands for a sampler of :mod:`boltzmix.compose` with some of its settings; what follows the colon sets others,
checked against the fields of the sampler and, for ``annealed-…``, of its kernel.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from boltzmix import compose
from boltzmix.compose import samplers as sampler_classes
from boltzmix.compose.product import Product
from boltzmix.compose.sample import choose_sampler
from boltzmix.compose.samplers.base import Sampler
from boltzmix.compose.term import Term
from boltzmix.models.formula.grammar import nearest

_HIDDEN = ("kernel", "record", "members")  # objects, and what --gif asks for
_KERNELS = {
    "ula": ("ULA", {}),
    "mala": ("MALA", {}),
    "uhmc": ("UHMC", {"num_leapfrog": 3}),
    "hmc": ("HMC", {"num_leapfrog": 3}),
}


@dataclass(frozen=True)
class Choice:
    """What a name stands for.

    Args:
        sampler: class name in :mod:`boltzmix.compose`.
        says: one line for ``--list``.
        settings: of the sampler.
        kernel: class name of the kernel.
        of_kernel: settings of the kernel.
    """

    sampler: str
    says: str
    settings: dict[str, Any] = field(default_factory=dict)
    kernel: str | None = None
    of_kernel: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[Any, Any]:
        """The two classes; None where this version does not have them."""
        return _class(self.sampler), None if self.kernel is None else _class(self.kernel)

    @property
    def exists(self) -> bool:
        """Whether this version has it, with the settings that the name stands for."""
        sampler, kernel = self.classes
        if sampler is None or (self.kernel is not None and kernel is None):
            return False
        return set(self.settings) <= {f.name for f in dataclasses.fields(sampler)}

    def fields(self) -> dict[str, tuple[bool, Any]]:
        """Settings by name: whether they are the kernel's, and their default."""
        sampler, kernel = self.classes
        found = {
            f.name: (False, _default(f))
            for f in dataclasses.fields(sampler)
            if f.init and f.name not in (*_HIDDEN, *self.settings)
        }
        if kernel is not None:
            own = [f for f in dataclasses.fields(kernel) if f.init and f.name != "inverse_mass"]
            found.update({f.name: (True, self.of_kernel.get(f.name, _default(f))) for f in own})
        return found

    def build(self, settings: dict[str, Any]) -> Sampler:
        """The sampler."""
        sampler, kernel = self.classes
        known = self.fields()
        own = self.settings | {k: v for k, v in settings.items() if not known[k][0]}
        if isinstance(own.get("corrector"), str):
            own["corrector"] = _corrector(own["corrector"])
        if kernel is not None:
            own["kernel"] = kernel(**(self.of_kernel | {k: v for k, v in settings.items() if known[k][0]}))
        return sampler(**own)


_THREE = {"num_leapfrog": 3}
_CHOICES = {
    "reverse": Choice("Reverse", "reverse diffusion, Heun's method; biased for composites"),
    "reverse-ddim": Choice("Reverse", "the same by DDIM, one evaluation a step", {"solver": "ddim"}),
    "reverse-ddpm": Choice("Reverse", "the same by DDPM's ancestral steps", {"solver": "ddpm"}),
    "reverse-dpmpp": Choice("Reverse", "the same by DPM-Solver++ (2M)", {"solver": "dpmpp"}),
    "smc": Choice("SMC", "sequential Monte Carlo with log Z; needs energies"),
    "ais": Choice("AIS", "annealed importance sampling, weights kept; needs energies"),
    "annealed": Choice("Annealed", "annealed MCMC, its kernel by what the models know"),
    "annealed-ula": Choice("Annealed", "annealed MCMC by unadjusted Langevin steps", {}, "ULA"),
    "annealed-mala": Choice("Annealed", "annealed MCMC by Langevin steps with a Metropolis test", {}, "MALA"),
    "annealed-uhmc": Choice("Annealed", "annealed MCMC by Hamiltonian steps without a test", {}, "UHMC", _THREE),
    "annealed-hmc": Choice("Annealed", "annealed MCMC by Hamiltonian steps with a Metropolis test", {}, "HMC", _THREE),
    "fkc": Choice("FKC", "Feynman-Kac correctors: reverse diffusion with weights; scores are enough"),
    "superdiff-and": Choice("SuperDiff", "superposition: equally likely under all models", {"mode": "and"}),
    "superdiff-or": Choice("SuperDiff", "superposition: a mixture of all models", {"mode": "or"}),
    "twisted": Choice("Twisted", "twisted SMC: rewards at the denoised estimate, corrected"),
    "exact": Choice("Exact", "independent draws of a term that can be drawn exactly"),
}


def choices() -> dict[str, Choice]:
    """The names that this version has, without ``auto``."""
    return {name: choice for name, choice in _CHOICES.items() if choice.exists}


def named_sampler(
    text: str, term: Term, steps: int | None = None, operands: Sequence[Term] = ()
) -> tuple[Sampler, str]:
    """A sampler by name, and why it was taken.

    Args:
        text: ``NAME`` or ``NAME:key=value,key=value``; ``auto`` is what :func:`boltzmix.sample` would take.
        term: the target, for ``auto``.
        operands: the factors of the formula as written, which are the members of ``superdiff-and`` where the product
            merges them.
        steps: ``steps`` of samplers that have them, ``levels`` of those that have these.

    Raises:
        ValueError: an unknown name or setting, with the nearest one that is known; values out of range.

    Example:
        >>> from boltzmix.compose import Gaussian
        >>> import torch
        >>> named_sampler("reverse-ddim:steps=20,eta=1.0", Gaussian(torch.zeros(2), 1.0))[0].steps
        20
    """
    name, colon, rest = text.strip().partition(":")
    name = name.strip().lower()
    known = choices()
    if name == "auto":
        if colon:
            raise ValueError("auto has no settings: name a sampler, e.g. annealed-uhmc:levels=64")
        sampler, reason = choose_sampler(term, False)
        if steps is not None:
            sampler = dataclasses.replace(sampler, **{_steps_field(sampler, "auto"): steps})  # pyright: ignore[reportArgumentType]
        return sampler, reason
    if name not in known:
        later = " (this version does not have it)" if name in _CHOICES else ""
        names = [*known, "auto"]
        raise ValueError(f"no sampler is called {name!r}{later}{nearest(name, names)}; there are {', '.join(names)}")
    choice = known[name]
    settings = _settings(rest, name, choice) if colon else {}
    if steps is not None:
        key = _steps_field(choice.classes[0], name)
        if key in settings:
            raise ValueError(f"--steps and {key}= say the same of {name}; give one of them")
        settings[key] = steps
    sampler = choice.build(settings)
    if name == "superdiff-and" and isinstance(term, Product) and set(term.exponents()) != {1.0} and len(operands) > 1:
        sampler = dataclasses.replace(sampler, members=tuple(operands))  # pyright: ignore[reportCallIssue]
    return sampler, "as asked"


def _corrector(name: str) -> Any:
    if name not in _KERNELS:
        raise ValueError(f"corrector={name} is no kernel{nearest(name, _KERNELS)}; there are {', '.join(_KERNELS)}")
    kernel, settings = _KERNELS[name]
    return _class(kernel)(**settings)


def _settings(text: str, name: str, choice: Choice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = choice.fields()
    for part in re.split(r",(?![^\[]*\])", text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"settings of a sampler are key=value, separated by commas; got {part!r} in {name}:{text}")
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}{nearest(key, known)}; it has {', '.join(known)}")
        if key in found:
            raise ValueError(f"{key} is set twice in {name}:{text}")
        found[key] = _literal(value, key)
    return found


def _literal(text: str, key: str) -> Any:
    """A number, a word, true, false, none, or a list of numbers in brackets."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"{key}={text}: a list ends with ']'")
        return tuple(_literal(part.strip(), key) for part in text[1:-1].split(",") if part.strip())
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?\d{1,12}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) and len(text) <= 24:
        return float(text)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*", text):
        return text
    raise ValueError(f"{key}={text}: expected a number, a word, true, false, none or a list such as [0.5,1]")


def _steps_field(sampler: Any, name: str) -> str:
    own = [f.name for f in dataclasses.fields(sampler)]
    found = next((key for key in ("steps", "levels") if key in own), None)
    if found is None:
        raise ValueError(f"--steps is for samplers with steps or levels, and {name} has {', '.join(own) or 'none'}")
    return found


def _class(name: str) -> Any:
    return getattr(compose, name, None) or getattr(sampler_classes, name, None)


def _default(f: Any) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else "…"


def short(value: Any) -> str:
    """A frozen dataclass without the settings that have their default value.

    Example:
        >>> from boltzmix.compose import HMC, Annealed
        >>> short(Annealed(levels=16, kernel=HMC(num_leapfrog=3)))
        'Annealed(levels=16, kernel=HMC(num_leapfrog=3))'
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    said = []
    for f in dataclasses.fields(value):
        own, default = getattr(value, f.name), _default(f)
        if f.init and f.repr and not (own is default or (type(own) is type(default) and own == default)):
            said.append(f"{f.name}={short(own)}")
    return f"{type(value).__name__}({', '.join(said)})"
