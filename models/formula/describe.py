"""What there is to name in a formula, and what a formula says: conditions with their ranges, the normal form."""

import math
from typing import Any

import torch

from boltzmix.compose.constraints import BoundedNegation
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.mixture import Mixture
from boltzmix.compose.product import Product
from boltzmix.compose.term import Term
from boltzmix.compose.variable import Variable
from boltzmix.models.formula.build import Formula
from boltzmix.models.formula.within import Within

_TEXTS = ("prompt", "negative_prompt")
_PAIRS = ("original_size", "crop", "target_size")


def conditions(term: Term) -> dict[str, str]:
    """The conditions that a model takes, and what each may be.

    Example:
        >>> from boltzmix.models.load import load
        >>> conditions(load("digits"))
        {'label': '0 … 9'}
    """
    description: Any = getattr(term, "description", None)
    classes = getattr(term, "num_classes", None)
    of_network: Any = getattr(term, "_conditions", None) or {}
    found: dict[str, str] = {}
    for name in sorted(term.conditions):
        if description is not None and name in description.fields:
            found[name] = _field(description, name)
        elif name == "label" and classes is not None:
            found[name] = f"0 … {classes - 1}"
        elif name in of_network and of_network[name].classes is not None:
            found[name] = f"0 … {of_network[name].classes - 1}"
        elif name in _TEXTS:
            found[name] = "text"
        elif name in _PAIRS:
            found[name] = "[number, number]"
        else:
            found[name] = "a tensor: from Python only"
    return found


def _field(description: Any, name: str) -> str:
    values = description.fields[name]
    if isinstance(values[0], str):
        said = " | ".join(f"'{value}'" for value in values)
    else:
        said = f"{values[0]:g} … {values[1]:g}"
    others = [other for group in description.together if name in group for other in group if other != name]
    return f"{said} (with {', '.join(others)})" if others else said


def shape(term: Term) -> str:
    """Shape of one draw."""
    if not isinstance(term.variables, Variable):
        return ", ".join(f"{name} {_size(v)}" for name, v in term.variables.items())
    return _size(term.variables)


def _size(variable: Variable) -> str:
    return " × ".join(map(str, variable.shape)) or "one number"


def sentence(term: Term) -> str:
    """One line about a model, for ``--list``."""
    low, high = term.sigma_range
    levels = "" if term.path == "static" else f", sigma {low:g} … {high:g}"
    return f"{type(term).__name__}, {shape(term)}{levels}, {'energy' if term.has_energy else 'score only'}"


def normal_form(formula: Formula) -> str:
    """What the formula amounts to once equal terms are merged: exponents by term.

    Example:
        >>> from boltzmix.models.formula.build import formula
        >>> normal_form(formula("digits * (digits(label=3) / digits) ** 3"))
        '{digits: -2, digits(label=3): 3}'
        >>> normal_form(formula("0.3 * circle + 0.7 * bar"))
        '0.3 · {circle: 1} + 0.7 · {bar: 1}'
    """
    return _form(formula, formula.term)


def _form(formula: Formula, term: Term) -> str:
    if isinstance(term, Mixture):
        members = zip(term.weights(), term._terms(), strict=True)
        return " + ".join(_form(formula, m) if w == 1 else f"{w:.4g} · {_form(formula, m)}" for w, m in members)
    if isinstance(term, Product):
        inside = ", ".join(f"{_factor(formula, t)}: {exponent(e)}" for t, e in term.pairs())
        scale = f"{math.exp(term.log_scale):.4g} · " if abs(term.log_scale) > 1e-12 else ""
        return f"{scale}{{{inside}}}"
    return f"{{{_factor(formula, term)}: 1}}"


def _factor(formula: Formula, term: Term) -> str:
    if isinstance(term, BoundedNegation):
        return f"bounded_negation({_form(formula, term.p)}, {_form(formula, term.q)}, {term.alpha:g})"
    if isinstance(term, (Mixture, Product)):
        return f"({_form(formula, term)})"
    return formula.label(term)


def exponent(value: Exponent) -> str:
    """A number, or its values over intervals of noise levels.

    Example:
        >>> exponent(Exponent(1.0) + Exponent(2.0) * Exponent(Within(0.5, 10.0)))
        '(1 below sigma = 0.5, 3 up to 10, 1 above)'
    """
    if value.constant is not None:
        return f"{value.constant:g}"
    ends = sorted({end for f in value.factors() if isinstance(f, Within) for end in (f.low, f.high)} - {0.0, torch.inf})
    if not ends:
        return value.extra_repr()
    inner = [0.5 * (a + b) for a, b in zip([0.0, *ends], ends, strict=False)] + [2 * ends[-1]]
    said = [f"{float(value.value(torch.tensor(level, dtype=torch.float64))):g}" for level in inner]
    parts = [f"{said[0]} below sigma = {ends[0]:g}"]
    parts += [f"{what} up to {end:g}" for what, end in zip(said[1:-1], ends[1:], strict=True)]
    return f"({', '.join([*parts, f'{said[-1]} above'])})"


def path_reason(formula: Formula) -> str:
    """Why the formula's path is what it is, in the formula's own names."""
    term = formula.term
    if term.path == "static":
        return "it does not change with sigma"
    if term.path == "noised":
        return "p(x; sigma) is exactly the density of x0 + sigma · noise"
    if not isinstance(term, Product):
        return term.path_reason
    for factor, power in term.pairs():
        if factor.path != "noised":
            return f"{_factor(formula, factor)} is {factor.path}"
        if power.constant != 1.0:
            has = "an exponent that changes" if power.constant is None else f"exponent {power.constant:g}"
            return f"{_factor(formula, factor)} has {has}, and a power of a noised density is no noised density"
    return "a product of noised densities is not the noised product"
