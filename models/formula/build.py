"""From a syntax tree to a term: what its parts mean, and mistakes of meaning at their positions."""

import itertools
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from boltzmix.compose.constraints import bounded_negation
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.mixture import Mixture, mixture
from boltzmix.compose.product import Product, guidance, negation
from boltzmix.compose.term import Term
from boltzmix.models.formula.errors import FormulaError
from boltzmix.models.formula.grammar import (
    FUNCTIONS,
    Argument,
    Call,
    Chain,
    Interval,
    Model,
    Node,
    Number,
    Power,
    Sign,
    nearest,
    parse,
)
from boltzmix.models.formula.library import Library
from boltzmix.models.formula.tokens import check_number
from boltzmix.models.formula.within import Within

LARGEST_EXPONENT = 1_000.0
MOST_MODELS = 200
"""Models in one formula."""


class Models(Protocol):
    """Where names lead; :class:`~boltzmix.models.formula.library.Library` is one."""

    def names(self) -> list[str]:
        """The names that :meth:`load` knows."""
        ...

    def load(self, name: str, quoted: bool = False) -> Term:
        """The same object for the same name, so that equal models of a formula merge."""
        ...


@dataclass(frozen=True)
class Formula:
    """A formula that was read.

    Attributes:
        text: as written.
        term: its density.
        tree: its syntax tree.
        labels: what each term of the normal form is called, by its key.
        models: the names of the models in it.
        operands: the factors of the formula as written, before equal terms merge: ``p * q`` has two.
    """

    text: str
    term: Term
    tree: Node
    labels: Mapping[Hashable, str]
    models: tuple[str, ...]
    operands: tuple[Term, ...] = ()

    def label(self, term: Term) -> str:
        """A factor as the formula writes it."""
        return self.labels.get(term.key()) or term.name()


def formula(text: str, models: Models | Mapping[str, Any] | None = None) -> Formula:
    """A formula as a term.

    Args:
        text: e.g. ``"digits * (digits(label=3) / digits) ** 2"``; see :mod:`boltzmix.models.formula.grammar`.
        models: more names: terms, or paths as :class:`~boltzmix.models.formula.library.Library` takes them; the
            models that ship with the package are known.

    Raises:
        FormulaError: a mistake, with its position.
        FileNotFoundError: a model's files are not complete.

    Example:
        >>> found = formula("circle * (bar / circle) ** 3")
        >>> found.term.exponents()
        [-2.0, 3.0]
    """
    library = models if hasattr(models, "load") else Library(models)  # pyright: ignore[reportArgumentType]
    return _Builder(text, library).run()  # pyright: ignore[reportArgumentType]


@dataclass
class _Builder:
    """Values of nodes: a float, an exponent, or a term."""

    text: str
    library: Models
    labels: dict[Hashable, str] = field(default_factory=dict)
    windows: dict[Within, Exponent] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    found: dict[int, "float | Exponent | Term"] = field(default_factory=dict)
    count: int = 0

    def run(self) -> Formula:
        tree = parse(self.text)
        value = self.value(tree)
        if not isinstance(value, Term):
            raise self.error("a formula is a density and this is a number; name a model, e.g. circle", tree.position)
        return Formula(self.text, value, tree, self.labels, tuple(dict.fromkeys(self.used)), self.factors(tree))

    def factors(self, tree: Node) -> tuple[Term, ...]:
        if not isinstance(tree, Chain) or set(tree.operators) != {"*"}:
            return ()
        values = [self.value(operand) for operand in tree.operands]
        return tuple(v for v in values if isinstance(v, Term)) if all(isinstance(v, Term) for v in values) else ()

    def error(self, reason: str, position: int) -> FormulaError:
        return FormulaError(reason, self.text, position)

    def attempt(self, make: Callable[[], Any], position: int) -> Any:
        """What ``make`` returns; its complaint gets a position."""
        try:
            return make()
        except FormulaError:
            raise
        except (ValueError, TypeError) as error:
            raise self.error(" ".join(str(error).split()), position) from error

    def value(self, node: Node) -> float | Exponent | Term:
        """What a node stands for, found once."""
        if id(node) not in self.found:
            self.found[id(node)] = self.evaluate(node)
        return self.found[id(node)]

    def evaluate(self, node: Node) -> float | Exponent | Term:
        match node:
            case Number():
                return check_number(float(node.value), self.text, node.position)
            case Model():
                return self.model(node)
            case Call():
                return self.call(node)
            case Sign():
                return self.sign(node)
            case Power():
                return self.power(node)
            case Interval():
                return self.interval(node)
            case Chain():
                return self.sum(node) if node.operators[0] == "+" else self.product(node)

    def number(self, node: Node, what: str) -> float:
        found = self.value(node)
        if isinstance(found, Term):
            raise self.error(f"{what} is a number, got a density", node.position)
        if isinstance(found, Exponent):
            raise self.error(f"{what} is one number, got an interval of noise levels", node.position)
        return found

    # ---------------------------------------------------------------- operators

    def sign(self, node: Sign) -> float:
        found = self.value(node.operand)
        if isinstance(found, Term):
            raise self.error(
                "a density has no sign: write 1 / p, or p / q ** gamma for NOT; exponents may be negative",
                node.position,
            )
        assert not isinstance(found, Exponent)
        return -found if node.operator == "-" else found

    def power(self, node: Power) -> float | Term:
        base = self.value(node.base)
        exponent = self.exponent(node.exponent)
        if isinstance(base, Term):
            return self.bounded(self.attempt(lambda: Product([(base, exponent)]), node.operator), node.operator)
        assert not isinstance(base, Exponent)
        if isinstance(exponent, Exponent):
            raise self.error("an interval of noise levels is for exponents of densities", node.exponent.position)
        try:
            found = float(base**exponent)  # a negative number to a fraction is complex, which float() refuses
        except (OverflowError, ZeroDivisionError, TypeError):
            raise self.error(f"{base:g} ** {exponent:g} is no number that a formula takes", node.operator) from None
        return check_number(found, self.text, node.operator)

    def exponent(self, node: Node) -> float | Exponent:
        found = self.value(node)
        if isinstance(found, Term):
            raise self.error("an exponent is a number, got a density", node.position)
        if isinstance(found, float) and abs(found) > LARGEST_EXPONENT:
            raise self.error(
                f"exponents are between -{LARGEST_EXPONENT:g} and {LARGEST_EXPONENT:g}, got {found:g}", node.position
            )
        return found

    def interval(self, node: Interval) -> Exponent:
        inside = self.exponent(node.value)
        if isinstance(inside, Exponent):
            raise self.error("an exponent has one interval of noise levels", node.bracket)
        outside = 1.0 if node.otherwise is None else self.exponent(node.otherwise)
        assert isinstance(outside, float)
        window = Within(node.low, node.high)
        indicator = self.windows.setdefault(window, Exponent(window))  # one function each, so that exponents merge
        return Exponent(outside) + Exponent(inside - outside) * indicator

    def product(self, node: Chain) -> float | Term:
        values = [self.value(operand) for operand in node.operands]
        scale = 1.0
        for operator, value, operand in zip(node.operators, values, node.operands, strict=True):
            if not isinstance(value, float):
                continue
            if operator == "/" and value == 0:
                raise self.error("division by zero", operand.position)
            scale = check_number(scale * value if operator == "*" else scale / value, self.text, operand.position)
        pairs = [
            (value, -1.0 if operator == "/" else 1.0, operand.position)
            for operator, value, operand in zip(node.operators, values, node.operands, strict=True)
            if isinstance(value, Term)
        ]
        if not pairs:
            return scale
        if not scale > 0:
            at = next(o.position for o, v in zip(node.operands, values, strict=True) if isinstance(v, float) and v <= 0)
            raise self.error(f"a density is scaled by a positive number, got {scale:g}", at)
        first = pairs[0]
        if len(pairs) == 1 and scale == 1.0 and first[1] == 1.0:
            return first[0]
        return self.together(pairs, scale)

    def together(self, pairs: Sequence[tuple[Term, float, int]], scale: float) -> Product:
        """The product; where its members do not fit, the position is that of the first that does not."""
        try:
            return self.bounded(Product([(t, w) for t, w, _ in pairs], math.log(scale)), pairs[0][2])
        except FormulaError:
            raise
        except (ValueError, TypeError):
            for k, (_, _, position) in enumerate(pairs):
                self.attempt(lambda k=k: Product([(t, w) for t, w, _ in pairs[: k + 1]]), position)
            raise

    def bounded(self, product: Product, position: int) -> Product:
        """The product itself, unless powers of powers went too far."""
        for term, exponent in product.pairs():
            if abs(exponent.constant or 0.0) > LARGEST_EXPONENT or abs(product.log_scale) > LARGEST_EXPONENT:
                raise self.error(
                    f"exponents are between -{LARGEST_EXPONENT:g} and {LARGEST_EXPONENT:g}, that of "
                    f"{self.labels.get(term.key(), term.name())} becomes {exponent.extra_repr()}",
                    position,
                )
        return product

    def sum(self, node: Chain) -> float | Term:
        for k, (left, right) in enumerate(itertools.pairwise(node.operands), start=1):
            if node.operators[k] == "-":
                name = f"{_edge(left, -1)}-{_edge(right, 0)}"
                if name in self.library.names():
                    raise self.error(f"a name with a hyphen is written in quotes, '{name}'", node.positions[k])
        values = [self.value(operand) for operand in node.operands]
        numbers = [v for v in values if isinstance(v, float)]
        if len(numbers) == len(values):
            total = math.fsum(-v if o == "-" else v for o, v in zip(node.operators, numbers, strict=True))
            return check_number(total, self.text, node.position)
        members: list[Term] = []
        for k, (operator, value) in enumerate(zip(node.operators, values, strict=True)):
            if not isinstance(value, Term):
                raise self.error(
                    f"a density is added to a density, got the number {value:g}; a scale is written 0.3 * p",
                    node.operands[k].position,
                )
            if operator == "-":
                raise self.error("densities are not subtracted: write p / q ** gamma", node.positions[k])
            members.append(value)
            self.attempt(lambda: Mixture(members, [0.0] * len(members)), node.operands[k].position)
        return Mixture(members, [0.0] * len(members))

    # -------------------------------------------------------- models, functions

    def model(self, node: Model) -> Term:
        self.count += 1
        if self.count > MOST_MODELS:
            raise self.error(f"a formula names at most {MOST_MODELS} models", node.position)
        known = self.library.names()
        if not node.quoted and node.name not in known:
            raise self.error(self.unknown(node.name, known), node.position)
        term = self.attempt(lambda: self.library.load(node.name, node.quoted), node.position)
        self.used.append(node.name)
        shown = f"'{node.name}'" if node.quoted else node.name
        self.labels.setdefault(term.key(), shown)
        if not node.arguments:
            return term
        takes = sorted(term.conditions)
        for argument in node.arguments:
            if argument.name not in term.conditions:
                what = f"it takes {', '.join(takes)}" if takes else "it takes none"
                raise self.error(
                    f"{shown} has no condition {argument.name!r}{nearest(argument.name, takes)}; {what}",
                    argument.position,
                )
        given = {a.name: _condition(a.name, a.value) for a in node.arguments}
        try:
            found = term.given(**given)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise self.error(reason, _blamed(node, reason)) from error
        inside = ", ".join(f"{a.name}={_written(a.value)}" for a in node.arguments)
        self.labels.setdefault(found.key(), f"{shown}({inside})")
        return found

    def unknown(self, name: str, known: list[str]) -> str:
        named = [k for k in known if re.fullmatch(r"[A-Za-z_]\w*", k)]
        if name in named:
            return name
        also = [*named, *FUNCTIONS]
        return f"no model is called {name!r}{nearest(name, also)}; there are {', '.join(named)}"

    def call(self, node: Call) -> Term:
        name, takes = node.function, FUNCTIONS[node.function]
        operands = [(self.value(operand), operand) for operand in node.operands]
        options = {key: (value, position) for key, value, position in node.options}
        if len(options) < len(node.options):
            raise self.error(f"{takes} is given twice", node.options[-1][2])
        if name == "mixture":
            weights = options.get("weights", (None, 0))[0]
            terms = [self.density(value, operand, "mixture(p, q, weights=[0.3, 0.7])") for value, operand in operands]
            if not terms:
                raise self.error("mixture needs densities before its weights", node.position)
            if weights is None:
                return self.attempt(lambda: mixture(terms), node.position)
            assert isinstance(weights, Argument)
            given: Any = weights.value
            if any(isinstance(w, (bool, str, tuple)) for w in given):
                raise self.error("weights are positive numbers, weights=[0.3, 0.7]", weights.value_position)
            return self.attempt(lambda: mixture(terms, given), weights.value_position)
        usage = f"{name}(p, q, {takes}=2)"
        third = operands[2:]
        if len(operands) < 2 or len(third) > 1 or (third and options):
            raise self.error(f"{name} takes two densities and {takes}, {usage}", node.position)
        p, q = (self.density(value, operand, usage) for value, operand in operands[:2])
        written = third[0][1] if third else options[takes][0] if options else None
        if written is None:
            if name != "negation":
                raise self.error(f"{name} also needs {takes}, {usage}", node.position)
            return self.attempt(lambda: negation(p, q), node.position)
        assert not isinstance(written, Argument)
        at = written.position
        if name == "bounded_negation":
            alpha = self.number(written, takes)
            self.exponent(written)
            return self.attempt(lambda: bounded_negation(p, q, alpha), at)
        exponent = self.exponent(written)
        make = negation if name == "negation" else guidance
        return self.attempt(lambda: make(p, q, exponent), at)

    def density(self, value: object, node: Node, usage: str) -> Term:
        if not isinstance(value, Term):
            raise self.error(f"expected a density, got a number: {usage}", node.position)
        return value


def _edge(node: Node, index: int) -> str:
    """The name of the model at the left or right end of a product."""
    node = node.operands[index] if isinstance(node, Chain) else node
    return node.name if isinstance(node, Model) else ""


def _condition(name: str, value: Any) -> Any:
    """Lists of labels are rows, one label for each draw; other lists are handed on as tuples."""
    if name == "label" and isinstance(value, tuple) and all(type(v) is int for v in value):
        return torch.tensor(value)
    return value


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _blamed(node: Model, reason: str) -> int:
    """The position of the condition that a complaint is about: by its name, then by its value."""

    def matches(argument: Argument) -> tuple[bool, bool]:
        named = re.search(rf"\b{re.escape(argument.name)}\b", reason) is not None
        return named, _written(argument.value) in reason or repr(argument.value) in reason

    if len(node.arguments) == 1:
        return node.arguments[0].value_position
    best = max(node.arguments, key=matches)
    return best.value_position if any(matches(best)) else node.position
