"""Formulas as text: ``formula("circle * bar ** 2")``, a small language that is parsed and never run as Python."""

from boltzmix.models.formula.build import Formula, formula
from boltzmix.models.formula.errors import FormulaError
from boltzmix.models.formula.grammar import parse
from boltzmix.models.formula.library import Library

__all__ = ["Formula", "FormulaError", "Library", "formula", "parse"]
