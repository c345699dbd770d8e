"""Exponents of a product: constants, learnable parameters, or functions of the noise level.

An exponent is a polynomial ``Σ_m c_m ∏_j f_mj`` whose factors ``f`` are parameters or functions of σ.
Sums and products of exponents are again exponents, which is what ``(p**a)**b = p**(a*b)`` and the
merging of equal terms need; a learnable exponent stays learnable through both.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from boltzmix.compose.tracing import is_tracing


class Exponent(nn.Module):
    """A number, a scalar tensor (learnable if it requires grad) or a function σ → number or ``(N,)``.

    A tensor that neither is a Parameter nor requires grad is the number it holds.

    Example:
        >>> Exponent(2.0).constant
        2.0
        >>> float((Exponent(2.0) * Exponent(3.0)).value(None))
        6.0
        >>> Exponent(lambda sigma: 1.0 / (1.0 + sigma)).constant is None
        True
    """

    def __init__(self, value: object = 1.0) -> None:
        """Wrap ``value``: an int or float, a scalar tensor or parameter, or a function of σ."""
        super().__init__()
        self.parameters_ = nn.ParameterList()
        self._factors: list[object] = []  # functions, or indices into parameters_ / buffers
        self._monomials: dict[tuple[int, ...], float] = {}
        if isinstance(value, bool):
            raise TypeError("an exponent is a number, a scalar tensor or a function of sigma, got a bool")
        if isinstance(value, (int, float)):
            if not math.isfinite(value):
                raise ValueError(f"an exponent must be finite, got {value}")
            if value != 0:
                self._monomials[()] = float(value)
        elif isinstance(value, Tensor):
            if value.numel() != 1 or not value.is_floating_point():
                raise ValueError(
                    f"an exponent tensor holds one floating-point number, got {value.dtype} of shape "
                    f"{tuple(value.shape)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"an exponent must be finite, got {float(value)}")
            if isinstance(value, nn.Parameter) or value.requires_grad:
                self._add_factor(value)
                self._monomials[(0,)] = 1.0
            elif float(value) != 0:
                self._monomials[()] = float(value)
        elif callable(value):
            self._add_factor(value)
            self._monomials[(0,)] = 1.0
        else:
            raise TypeError(
                f"an exponent is a number, a scalar tensor or a function of sigma, got {type(value).__name__}"
            )

    def _add_factor(self, factor: object) -> int:
        for index, own in enumerate(self.factors()):
            if own is factor:
                return index
        if isinstance(factor, nn.Parameter):
            self._factors.append(("parameter", len(self.parameters_)))
            self.parameters_.append(factor)
        elif isinstance(factor, Tensor):
            self.register_buffer(f"factor_{len(self._factors)}", factor, persistent=True)
            self._factors.append(("buffer", f"factor_{len(self._factors)}"))
        else:
            self._factors.append(("function", factor))
        return len(self._factors) - 1

    def factors(self) -> list[object]:
        """The parameters, tensors and functions that the polynomial is built of."""
        return [self._factor(kind, ref) for kind, ref in self._factors]  # pyright: ignore[reportGeneralTypeIssues]

    def _factor(self, kind: str, ref: object) -> object:
        if kind == "parameter":
            return self.parameters_[ref]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return getattr(self, ref) if kind == "buffer" else ref  # pyright: ignore[reportArgumentType]

    @property
    def constant(self) -> float | None:
        """The value when it is a plain number, else None."""
        monomials = self._monomials
        if not monomials:
            return 0.0
        return monomials.get(()) if len(monomials) == 1 else None

    @property
    def depends_on_sigma(self) -> bool:
        """Whether a function of σ takes part."""
        return any(kind == "function" for kind, _ in self._factors)  # pyright: ignore[reportGeneralTypeIssues]

    def value(self, sigma: Tensor | None) -> float | Tensor:
        """The exponent at σ: a float, a scalar tensor, or ``(N,)`` when σ is per row; σ = None is 0."""
        constant = self.constant
        if constant is not None:
            return constant
        level = torch.zeros(()) if sigma is None else sigma
        values: list[float | Tensor] = [
            factor.reshape(()) if isinstance(factor, Tensor) else _call(factor, level) for factor in self.factors()
        ]
        total: float | Tensor = 0.0
        for indices, coefficient in self._monomials.items():
            product: float | Tensor = coefficient
            for index in indices:
                product = product * values[index]
            total = total + product
        return total

    def _combine(self, other: "Exponent", multiply: bool) -> "Exponent":
        result = Exponent(0.0)
        mine = [result._add_factor(f) for f in self.factors()]
        theirs = [result._add_factor(f) for f in other.factors()]
        left = {tuple(sorted(mine[i] for i in m)): c for m, c in self._monomials.items()}
        right = {tuple(sorted(theirs[i] for i in m)): c for m, c in other._monomials.items()}
        if multiply:
            for a, ca in left.items():
                for b, cb in right.items():
                    key = tuple(sorted(a + b))
                    result._monomials[key] = result._monomials.get(key, 0.0) + ca * cb
        else:
            result._monomials = dict(left)
            for b, cb in right.items():
                result._monomials[b] = result._monomials.get(b, 0.0) + cb
        result._monomials = {m: c for m, c in result._monomials.items() if c != 0.0}
        return result

    def __add__(self, other: "Exponent") -> "Exponent":
        """Sum of two exponents: equal terms of a product merge."""
        return self._combine(other, multiply=False)

    def __mul__(self, other: "Exponent") -> "Exponent":
        """Product of two exponents: a power of a power."""
        return self._combine(other, multiply=True)

    def extra_repr(self) -> str:
        """The number, or the word that says what it depends on."""
        constant = self.constant
        if constant is not None:
            return f"{constant:g}"
        if not self.depends_on_sigma:
            return "learnable"
        shown = [_shown(factor) for factor in self.factors()]
        if "" in shown:
            return "function of sigma"
        parts = []
        for indices, coefficient in sorted(self._monomials.items()):
            names = [shown[i] for i in indices]
            parts.append("·".join(names if names and coefficient == 1.0 else [f"{coefficient:g}", *names]))
        return " + ".join(parts)


def _shown(factor: object) -> str:
    """A factor as a text that tells it from others; empty for functions that do not say what they are."""
    if isinstance(factor, Tensor):
        return "learnable"
    return str(factor) if type(factor).__str__ is not object.__str__ else ""


def _call(function: object, level: Tensor) -> float | Tensor:
    """A function of σ at a level, checked: a finite number, or one per row."""
    assert callable(function)
    name = getattr(function, "__name__", type(function).__name__)
    try:
        value: Any = function(level)
    except RuntimeError as error:
        if level.ndim and "ambiguous" in str(error):
            raise ValueError(
                f"the exponent {name} branches on sigma, which differs by row here; write it with torch.where"
            ) from error
        raise
    if isinstance(value, Tensor):
        if value.shape not in ((), level.shape):
            raise ValueError(
                f"the exponent {name} returns a number or one per row, got shape {tuple(value.shape)} for sigma of "
                f"shape {tuple(level.shape)}"
            )
        finite = torch.compiler.is_compiling() or is_tracing() or bool(torch.isfinite(value).all())
    elif isinstance(value, (int, float)):
        finite = math.isfinite(value)
    else:
        raise TypeError(f"the exponent {name} must return a number or a tensor, got {type(value).__name__}")
    if not finite:
        shown = value.flatten()[:8].tolist() if isinstance(value, Tensor) else value
        raise ValueError(f"the exponent {name} must be finite, got {shown} at sigma={level.flatten()[:8].tolist()}")
    return value


def as_exponent(value: object) -> Exponent:
    """``value`` as an Exponent."""
    return value if isinstance(value, Exponent) else Exponent(value)
