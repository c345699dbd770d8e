"""The grammar of formulas, parsed by recursive descent; positions are kept for messages.

::

    formula   = sum
    sum       = product { ("+" | "-") product }
    product   = signed { ("*" | "/") signed }
    signed    = { "+" | "-" } power
    power     = operand [ "**" exponent ]
    exponent  = signed [ interval ]
    interval  = "[" [ number ] ":" [ number ] [ "," "else" signed ] "]"
    operand   = number
              | model [ "(" name "=" value { "," name "=" value } ")" ]
              | function "(" argument { "," argument } ")"
              | "(" sum ")"
    model     = name | string
    argument  = sum [ interval ] | name "=" ( sum [ interval ] | list )
    value     = [ "-" ] number | string | "true" | "false" | list
    list      = "[" value { "," value } "]"

Precedence is Python's: ``**`` binds closest and to the right, then signs, then ``*`` and ``/``, then ``+``. Nothing is
ever evaluated as Python. Nesting and length are bounded, so that parsing takes time and memory in proportion to the
formula.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from boltzmix.models.formula.errors import FormulaError
from boltzmix.models.formula.tokens import Kind, Token, tokenise

DEEPEST = 40
"""Levels of parentheses, signs and powers within each other."""

FUNCTIONS = {"mixture": "weights", "negation": "gamma", "bounded_negation": "alpha", "guidance": "power"}
"""Functions of densities, and the name of what they take beside these."""

Value = int | float | str | bool | tuple["Value", ...]

_WORDS = {
    "and": "AND is written p * q",
    "or": "OR is written p + q, or mixture(p, q)",
    "not": "NOT is written p / q ** gamma, negation(p, q, gamma) or bounded_negation(p, q, alpha)",
}


@dataclass(frozen=True)
class Number:
    """A number."""

    value: int | float
    position: int


@dataclass(frozen=True)
class Argument:
    """``name=value`` of a model: a condition."""

    name: str
    value: Value
    position: int
    value_position: int


@dataclass(frozen=True)
class Model:
    """A model by its name, or by a path in quotes, with its conditions."""

    name: str
    arguments: tuple[Argument, ...]
    position: int
    quoted: bool = False


@dataclass(frozen=True)
class Call:
    """A function of densities; ``options`` are what it takes beside these, by name."""

    function: str
    operands: tuple["Node", ...]
    options: tuple[tuple[str, "Node | Argument", int], ...]
    position: int


@dataclass(frozen=True)
class Chain:
    """Operands joined by operators of one rank: ``+ −`` or ``* /``; the first operator is ``+`` or ``*``."""

    operators: tuple[str, ...]
    operands: tuple["Node", ...]
    positions: tuple[int, ...]

    @property
    def position(self) -> int:
        """Where it begins."""
        return self.operands[0].position


@dataclass(frozen=True)
class Sign:
    """``+`` or ``-`` before an operand."""

    operator: str
    operand: "Node"
    position: int


@dataclass(frozen=True)
class Power:
    """A power."""

    base: "Node"
    exponent: "Node"
    operator: int

    @property
    def position(self) -> int:
        """Where it begins."""
        return self.base.position


@dataclass(frozen=True)
class Interval:
    """An exponent that holds for noise levels in [low, high], and ``otherwise`` elsewhere (None: 1)."""

    value: "Node"
    low: float
    high: float
    otherwise: "Node | None"
    bracket: int

    @property
    def position(self) -> int:
        """Where it begins."""
        return self.value.position


Node = Number | Model | Call | Chain | Sign | Power | Interval


def parse(text: str) -> Node:
    """The syntax tree of a formula.

    Raises:
        FormulaError: with the position of the mistake.

    Example:
        >>> parse("circle * bar").operators
        ('*', '*')
        >>> parse("circle * (bar")
        Traceback (most recent call last):
        boltzmix.models.formula.errors.FormulaError: expected ')' to close the '(' in column 10, got the end
          circle * (bar
                       ^
    """
    parser = _Parser(text)
    if parser.here.kind == "end":
        raise FormulaError("the formula is empty; write one such as 'circle * bar'", text, 0)
    tree = parser.sum()
    parser.finish()
    return tree


def nearest(name: str, known: object) -> str:
    """``"; did you mean 'circle'?"``, or nothing."""
    names = [str(k) for k in known]  # pyright: ignore[reportGeneralTypeIssues]
    close = difflib.get_close_matches(name, names, 1) or difflib.get_close_matches(name.lower(), names, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Parser:
    """Where parsing stands."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at, self.depth = text, tokenise(text), 0, 0

    # ------------------------------------------------------------------ tokens

    @property
    def here(self) -> Token:
        return self.tokens[self.at]

    def error(self, reason: str, token: Token | None = None) -> FormulaError:
        return FormulaError(reason, self.text, (token or self.here).position)

    def take(self) -> Token:
        token = self.here
        self.at += token.kind != "end"
        return token

    def is_operator(self, *operators: str) -> bool:
        return self.here.kind == "operator" and self.here.text in operators

    def expect(self, operator: str, why: str) -> Token:
        if not self.is_operator(operator):
            raise self.error(f"expected {operator!r} {why}, got {self.here.shown}{self._hint()}")
        return self.take()

    def expect_kind(self, kind: Kind, what: str) -> Token:
        if self.here.kind != kind:
            raise self.error(f"expected {what}, got {self.here.shown}")
        return self.take()

    def _hint(self) -> str:
        """What may have been meant where two operands stand side by side."""
        token = self.here
        if token.kind == "name" and token.text.lower() in _WORDS:
            return f"; {_WORDS[token.text.lower()]}"
        if token.kind in ("name", "number", "string") or token.text == "(":
            return "; products are written with *"
        if token.text == "[":
            return "; only an exponent has an interval of noise levels: p ** 2[0.5:10]"
        if token.text == "=":
            return "; conditions are given to a model: digits(label=3)"
        return ""

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"a formula is nested at most {DEEPEST} deep")

    def finish(self) -> None:
        if self.here.text == ")":
            raise self.error("this ')' closes nothing")
        if self.here.kind != "end":
            raise self.error(f"expected one of + * / ** or the end, got {self.here.shown}{self._hint()}")

    # ----------------------------------------------------------------- grammar

    def sum(self) -> Node:
        return self.chain(self.product, ("+", "-"))

    def product(self) -> Node:
        return self.chain(self.signed, ("*", "/"))

    def chain(self, operand: Callable[[], Node], operators: tuple[str, str]) -> Node:
        first = operand()
        found, signs, positions = [first], [operators[0]], [first.position]
        while self.is_operator(*operators):
            operator = self.take()
            signs.append(operator.text)
            positions.append(operator.position)
            found.append(operand())
        return first if len(found) == 1 else Chain(tuple(signs), tuple(found), tuple(positions))

    def signed(self) -> Node:
        if not self.is_operator("+", "-"):
            return self.power()
        self.deeper()
        sign = self.take()
        found = Sign(sign.text, self.signed(), sign.position)
        self.depth -= 1
        return found

    def power(self) -> Node:
        base = self.operand()
        if not self.is_operator("**"):
            return base
        self.deeper()
        operator = self.take()
        found = Power(base, self.exponent(), operator.position)
        self.depth -= 1
        return found

    def exponent(self) -> Node:
        value = self.signed()
        return self.interval(value) if self.is_operator("[") else value

    def interval(self, value: Node) -> Interval:
        bracket = self.take()
        low, _ = self.level(0.0)
        self.expect(":", "between the two noise levels of an interval, as in [0.5:10]")
        high, end = self.level(float("inf"))
        if not low < high:
            raise FormulaError(f"an interval of noise levels rises, [low:high], got [{low:g}:{high:g}]", self.text, end)
        otherwise = None
        if self.is_operator(","):
            self.take()
            word = self.expect_kind("name", "'else' and the exponent outside of the interval")
            if word.text != "else":
                raise self.error(f"expected 'else' and the exponent outside of the interval, got {word.shown}", word)
            otherwise = self.signed()
        self.expect("]", f"to close the '[' in column {bracket.position + 1}")
        return Interval(value, low, high, otherwise, bracket.position)

    def level(self, default: float) -> tuple[float, int]:
        """A noise level of an interval, or the default where none is written; and its position."""
        token = self.here
        if token.kind == "number":
            return float(self.take().text), token.position
        if self.is_operator("-"):
            raise self.error("noise levels are not negative")
        return default, token.position

    def operand(self) -> Node:
        token = self.here
        if token.kind == "number":
            self.take()
            return Number(_number(token.text), token.position)
        if token.kind == "string":
            self.take()
            return self.model(token)
        if token.kind == "name":
            if token.text.lower() in (*_WORDS, "else", "true", "false"):
                why = _WORDS.get(token.text.lower(), f"{token.text!r} is no model")
                raise self.error(f"expected a model, a number or '(', got {token.shown}; {why}")
            self.take()
            return self.call(token) if token.text in FUNCTIONS else self.model(token)
        if self.is_operator("("):
            self.deeper()
            opening = self.take()
            inside = self.sum()
            self.expect(")", f"to close the '(' in column {opening.position + 1}")
            self.depth -= 1
            return inside
        raise self.error(f"expected a model, a number or '(', got {token.shown}")

    def model(self, token: Token) -> Model:
        if not self.is_operator("("):
            return Model(token.text, (), token.position, token.kind == "string")
        opening = self.take()
        given: list[Argument] = []
        while True:
            given.append(self.condition(token))
            if any(g.name == given[-1].name for g in given[:-1]):
                raise FormulaError(f"{given[-1].name} is given twice", self.text, given[-1].position)
            if not self.is_operator(","):
                break
            self.take()
        self.expect(")", f"or ',' after a condition, to close the '(' in column {opening.position + 1}")
        return Model(token.text, tuple(given), token.position, token.kind == "string")

    def condition(self, model: Token) -> Argument:
        token = self.here
        following = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
        if token.kind != "name" or following.text != "=" or following.kind != "operator":
            plain = ", or no parentheses at all" if token.text == ")" else ""
            like = nearest(model.text, FUNCTIONS) if model.kind == "name" else ""
            at = following if token.kind == "name" else token
            wanted = "'=' and a value" if token.kind == "name" else f"a condition, {model.text}(NAME=VALUE){plain}"
            raise self.error(f"expected {wanted}, got {at.shown}{like}", at)
        self.at += 2
        start = self.here.position
        return Argument(token.text, self.value(), token.position, start)

    def value(self) -> Value:
        token = self.here
        if self.is_operator("-"):
            self.take()
            return -_number(self.expect_kind("number", "a number after '-'").text)
        if token.kind == "number":
            return _number(self.take().text)
        if token.kind == "string":
            return self.take().text
        if token.kind == "name" and token.text.lower() in ("true", "false"):
            return self.take().text.lower() == "true"
        if self.is_operator("["):
            return self.values()
        quotes = f"; strings are written in quotes, '{token.text}'" if token.kind == "name" else ""
        raise self.error(f"expected a number, a string in quotes, true, false or a list, got {token.shown}{quotes}")

    def values(self) -> tuple[Value, ...]:
        self.deeper()
        opening = self.take()
        found = [self.value()]
        while self.is_operator(","):
            self.take()
            found.append(self.value())
        self.expect("]", f"or ',' after a value, to close the '[' in column {opening.position + 1}")
        self.depth -= 1
        return tuple(found)

    def call(self, token: Token) -> Call:
        if not self.is_operator("("):
            raise self.error(f"expected '(' after the function {token.text}, got {self.here.shown}")
        self.deeper()
        opening = self.take()
        operands: list[Node] = []
        options: list[tuple[str, Node | Argument, int]] = []
        while True:
            name = self.here
            following = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
            if name.kind == "name" and following.kind == "operator" and following.text == "=":
                options.append(self.option(token, name))
            elif options:
                raise self.error(f"what {token.text} takes by name comes last, got {self.here.shown}")
            else:
                operand = self.sum()
                operands.append(self.interval(operand) if self.is_operator("[") else operand)
            if not self.is_operator(","):
                break
            self.take()
        self.expect(")", f"or ',' to close the '(' of {token.text} in column {opening.position + 1}")
        self.depth -= 1
        return Call(token.text, tuple(operands), tuple(options), token.position)

    def option(self, function: Token, name: Token) -> tuple[str, Node | Argument, int]:
        takes = FUNCTIONS[function.text]
        if name.text != takes:
            raise self.error(f"{function.text} takes {takes}= by name, got {name.text}=", name)
        self.at += 2
        start = self.here.position
        if takes == "weights":
            if not self.is_operator("["):
                raise self.error(f"expected a list of weights, weights=[0.3, 0.7], got {self.here.shown}")
            return takes, Argument(takes, self.values(), name.position, start), name.position
        found = self.sum()
        return takes, self.interval(found) if self.is_operator("[") else found, name.position


def _number(text: str) -> int | float:
    return float(text) if any(c in text for c in ".eE") else int(text)
