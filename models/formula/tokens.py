"""Formulas cut into tokens: names, numbers, strings and operators, each with its position."""

import keyword
import math
import re
from dataclasses import dataclass
from typing import Literal

from boltzmix.models.formula.errors import FormulaError

LONGEST = 4_000
"""Characters of a formula."""

LARGEST, SMALLEST = 1e9, 1e-9
"""Bounds on the absolute value of numbers that are not zero."""

Kind = Literal["name", "number", "string", "operator", "end"]

_TOKEN = re.compile(
    r"""(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<operator>\*\*|[-+*/()\[\],:=])""",
    re.VERBOSE,
)
_PYTHON = "nothing of a formula is run as Python"
_OURS = ("and", "or", "not", "else", "True", "False")  # words that the parser knows what to say about
# What people write, and what to write instead.
_INSTEAD = {
    "^": "powers are written p ** 2",
    "|": "OR is written p + q, or mixture(p, q); a condition p(label=3)",
    "&": "AND is written p * q",
    "~": "NOT is written p / q ** gamma",
    "!": "NOT is written p / q ** gamma",
    "×": "products are written p * q",
    "·": "products are written p * q",
    "÷": "quotients are written p / q",
    "−": "the minus sign of a number is '-'",
    "%": "there is no remainder of densities",
    "{": "lists are written [1, 2, 3]",
    ".": f"there are no attributes; {_PYTHON}",
    ";": f"there is one formula and no statement; {_PYTHON}",
    "`": f"names are written without quotes, or in ' or \"; {_PYTHON}",
    "\\": "a formula may go on in the next line without a mark",
    "‘": "strings are written in ' or \"",
    "’": "strings are written in ' or \"",
    "“": "strings are written in ' or \"",
    "”": "strings are written in ' or \"",
    "#": "there are no comments",
}


@dataclass(frozen=True)
class Token:
    """A piece of a formula.

    Attributes:
        kind: ``"name"``, ``"number"``, ``"string"``, ``"operator"`` or ``"end"``.
        text: as written; of strings without their quotes.
        position: index of its first character.
        end: index after its last one.
    """

    kind: Kind
    text: str
    position: int
    end: int

    @property
    def shown(self) -> str:
        """As messages name it."""
        return "the end" if self.kind == "end" else repr(self.text)


def tokenise(text: str) -> list[Token]:
    """The tokens of a formula, the last of which is its end.

    Raises:
        TypeError: no string.
        FormulaError: characters that no formula has, numbers out of bounds, strings that do not end.
    """
    if not isinstance(text, str):
        raise TypeError(f"a formula is a string such as 'circle * bar', got {type(text).__name__}")
    if len(text) > LONGEST:
        raise FormulaError(f"a formula has at most {LONGEST} characters, got {len(text)}", text[: LONGEST + 1], LONGEST)
    found: list[Token] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
            continue
        if text[at] in "'\"":
            token = _string(text, at, found)
        else:
            match = _TOKEN.match(text, at)
            if match is None:
                why = _INSTEAD.get(text[at], "a formula has names, numbers, strings and + - * / ** ( ) [ ] , = :")
                raise FormulaError(f"{text[at]!r} has no meaning here: {why}", text, at)
            token = Token(match.lastgroup, match[0], at, match.end())  # pyright: ignore[reportArgumentType]
        _check(text, token, found)
        found.append(token)
        at = token.end
    return [*found, Token("end", "", len(text), len(text))]


def _string(text: str, at: int, found: list[Token]) -> Token:
    """A string in either quotes, without escapes."""
    if found and found[-1].kind in ("name", "number") and found[-1].end == at:
        raise FormulaError(f"strings have no prefix and follow no name directly; {_PYTHON}", text, found[-1].position)
    end = text.find(text[at], at + 1)
    line = text.find("\n", at)
    if end < 0 or 0 <= line < end:
        raise FormulaError(f"this string has no closing {text[at]}", text, at)
    inside = text[at + 1 : end]
    for k, character in enumerate(inside):
        if not character.isprintable():
            raise FormulaError(f"strings hold characters that can be seen, got {character!r}", text, at + 1 + k)
    return Token("string", inside, at, end + 1)


def _check(text: str, token: Token, found: list[Token]) -> None:
    """What single tokens must satisfy."""
    if token.kind == "name" and ("__" in token.text or keyword.iskeyword(token.text)) and token.text not in _OURS:
        raise FormulaError(f"{token.text!r} is no name of a formula; {_PYTHON}", text, token.position)
    before = found[-1] if found and found[-1].end == token.position else None
    if token.kind == "name" and before is not None and before.kind == "number":
        raise FormulaError(
            f"{before.text}{token.text} is neither a number nor a name; write {before.text} * {token.text}",
            text,
            token.position,
        )
    if token.kind == "number":
        if before is not None and before.kind == "number":
            raise FormulaError(f"{before.text}{token.text} is no number", text, token.position)
        if len(token.text) > 24:
            raise FormulaError("numbers have at most 24 characters", text, token.position)
        check_number(float(token.text), text, token.position)
    if token.text == "/" and before is not None and before.text == "/":
        raise FormulaError("quotients are written p / q, with one /", text, token.position)


def check_number(value: float, text: str, position: int) -> float:
    """The number itself.

    Raises:
        FormulaError: not finite, or out of bounds.
    """
    if not math.isfinite(value) or (value and not SMALLEST <= abs(value) <= LARGEST):
        raise FormulaError(
            f"numbers are 0 or between {SMALLEST:g} and {LARGEST:g} in absolute value, got {value:g}", text, position
        )
    return value
