"""Formulas as text: what they mean, where their mistakes are, and that nothing of them is run as Python."""

import itertools
import math
import pickle
import random

import pytest
import torch

import boltzmix as bm
from boltzmix.compose import Exponent, Gaussian, bounded_negation, guidance, mixture, negation
from boltzmix.compose.mixture import Mixture
from boltzmix.models.formula import FormulaError, Library, formula, parse
from boltzmix.models.formula.describe import conditions, exponent, normal_form, path_reason
from boltzmix.models.formula.grammar import DEEPEST
from boltzmix.models.formula.tokens import LONGEST
from boltzmix.models.formula.within import Within

X = torch.tensor([[0.3, -0.2], [1.5, 0.7], [-2.0, 0.1]], dtype=torch.float64)


def gaussian(*mean, variance=1.0):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), variance)


P, Q, R = gaussian(0.0, 0.0), gaussian(1.0, 0.5, variance=2.0), gaussian(-1.0, 1.0, variance=0.5)
MODELS = {"p": P, "q": Q, "r": R}


@pytest.fixture(scope="module")
def library():
    return Library()


# -------------------------------------------------------------------- meaning


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("p", P),
        ("p * q", P * Q),
        ("p*q*r", P * Q * R),
        ("p / q", P / Q),
        ("p / q / r", P / Q / R),
        ("p / (q / r)", P / (Q / R)),
        ("p * q / r * q", P * Q / R * Q),
        ("p ** 2", P**2),
        ("p * q ** 3", P * Q**3),
        ("(p * q) ** 3", (P * Q) ** 3),
        ("p ** -1 * q", P**-1 * Q),
        ("p ** 2 ** 3", P**8),
        ("p ** (1 / 2 + 0.25)", P**0.75),
        ("p ** -(2 - 0.5)", P**-1.5),
        ("p * (q / p) ** 2.5", P * (Q / P) ** 2.5),
        ("2 * p", 2 * P),
        ("p / 4 * 2", P / 4 * 2),
        ("0.25 * (p * q)", 0.25 * (P * Q)),
        ("(2 * p) ** 3", (2 * P) ** 3),
        ("1 / p * p * q", 1 / P * P * Q),
        ("p + q", P + Q),
        ("0.3 * p + 0.7 * q", 0.3 * P + 0.7 * Q),
        ("p * q + r", P * Q + R),
        ("p * (q + r)", P * (Q + R)),
        ("p + q + r", P + Q + R),
        ("mixture(p, q)", mixture([P, Q])),
        ("mixture(p, q, weights=[1, 3])", mixture([P, Q], [1, 3])),
        ("mixture(p * q, r)", mixture([P * Q, R])),
        ("negation(p, q)", negation(P, Q)),
        ("negation(p, q, 0.5)", negation(P, Q, 0.5)),
        ("negation(p, q, gamma=0.5)", negation(P, Q, 0.5)),
        ("bounded_negation(p, q, 2)", bounded_negation(P, Q, 2.0)),
        ("bounded_negation(p, q, alpha=1 + 1)", bounded_negation(P, Q, 2.0)),
        ("guidance(p, q, 3)", guidance(P, Q, 3.0)),
        ("guidance(p, q, power=-1.5)", guidance(P, Q, -1.5)),
        ("negation(p, q + r, 1.5)", negation(P, Q + R, 1.5)),
        (" p\n\t*  q ", P * Q),
        ("p**+2", P**2),
        ("1e-3 * p", 1e-3 * P),
        (".5*p", 0.5 * P),
    ],
)
def test_a_formula_is_the_density_that_operators_make(text, meant):
    """Energies, constants included, and scores at a noise level and at the data end."""
    term = formula(text, MODELS).term
    for sigma in (None, 0.7):
        torch.testing.assert_close(term.energy(X, sigma), meant.energy(X, sigma), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(term.score(X, sigma), meant.score(X, sigma), rtol=1e-12, atol=1e-12)
    assert (term.path, term.normalized) == (meant.path, meant.normalized)


def test_random_formulas_mean_what_python_means():
    """Two hundred formulas over the operators, compared with Python's own precedence; seed fixed."""
    source = random.Random(0)

    def grown(depth):
        if depth == 0 or source.random() < 0.2:
            return source.choice("pqr")
        kind = source.choice(["*", "/", "**", "scale", "()"])
        inner = grown(depth - 1)
        if kind == "**":
            inner = inner if len(inner) == 1 else f"({inner})"
            return f"{inner} ** {source.choice(['2', '-1', '0.5', '(1/2)', '-(3-1)'])}"
        if kind == "scale":
            return f"{source.choice(['2', '0.25', '1e2'])} * {inner}"
        if kind == "()":
            return f"({inner})"
        return f"{inner} {kind} {grown(depth - 1)}"

    for _ in range(200):
        text = grown(4)
        meant = eval(text, {"__builtins__": {}}, {"p": P, "q": Q, "r": R})  # the text is from above
        torch.testing.assert_close(formula(text, MODELS).term.score(X), meant.score(X), rtol=1e-9, atol=1e-9)


def test_equal_terms_merge_and_a_network_is_held_once(library):
    found = formula("digits * (digits(label=3) / digits) ** 3 * digits(label=3)", library)
    assert found.term.exponents() == [-2.0, 4.0]
    assert normal_form(found) == "{digits: -2, digits(label=3): 4}"
    alone = sum(p.numel() for p in library.load("digits").parameters())
    assert sum(p.numel() for p in found.term.parameters()) == alone


@pytest.mark.parametrize(
    ("text", "form", "path", "why"),
    [
        ("circle", "{circle: 1}", "noised", "exactly"),
        ("circle * bar", "{circle: 1, bar: 1}", "annealed", "not the noised product"),
        ("circle ** 2", "{circle: 2}", "annealed", "circle has exponent 2"),
        ("2 * circle / bar", "2 · {circle: 1, bar: -1}", "annealed", "bar has exponent -1"),
        ("bar * circle ** 0", "{bar: 1}", "noised", "exactly"),
        ("0.5 * bar + 0.5 * circle", "0.5 · {bar: 1} + 0.5 · {circle: 1}", "annealed", "weights drift"),
        ("digits(label=2)", "{digits(label=2): 1}", "noised", "exactly"),
        ("bounded_negation(bar, circle, 2)", "{bounded_negation({bar: 1}, {circle: 1}, 2): 1}", "annealed", "bounded"),
        ("(bar + circle) * ring", "{({bar: 1} + {circle: 1}): 1, ring: 1}", "annealed", "is annealed"),
        (
            "digits * 'digits-classifier'(label=3)",
            "{digits: 1, 'digits-classifier'(label=3): 1}",
            "annealed",
            "is static",
        ),
    ],
)
def test_the_normal_form_and_the_path_are_explained(text, form, path, why, library):
    found = formula(text, library)
    assert normal_form(found) == form
    assert found.term.path == path
    assert why in path_reason(found)


def test_an_interval_of_noise_levels_is_an_exponent():
    """p (q/p)^2[0.5:10]: guidance inside, the conditional density q outside; ends belong to the interval."""
    term = formula("p * (q / p) ** 3[0.5:10]", MODELS).term
    for sigma, p, q in ((0.1, 0.0, 1.0), (0.5, -2.0, 3.0), (2.0, -2.0, 3.0), (10.0, -2.0, 3.0), (11.0, 0.0, 1.0)):
        wanted = p * P.score(X, sigma) + q * Q.score(X, sigma)
        torch.testing.assert_close(term.score(X, sigma), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(term.score(X), Q.score(X))
    rows = torch.tensor([0.1, 2.0, 20.0], dtype=torch.float64)
    wanted = torch.stack([term.score(X[k : k + 1], float(s))[0] for k, s in enumerate(rows)])
    torch.testing.assert_close(term.score(X, rows), wanted)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("p ** 2[0.5:10]", [1, 2, 2, 2, 1]),
        ("p ** 2[0.5:10, else 0]", [0, 2, 2, 2, 0]),
        ("p ** 2[0.5:10, else -1]", [-1, 2, 2, 2, -1]),
        ("p ** 2[:10]", [2, 2, 2, 2, 1]),
        ("p ** 2[0.5:]", [1, 2, 2, 2, 2]),
        ("p ** -2[0.5:10]", [1, -2, -2, -2, 1]),
        ("p ** (1 + 1)[0.5:10]", [1, 2, 2, 2, 1]),
        ("(p ** 2[0.5:10]) ** 3[2:]", [1, 2, 6, 6, 3]),
        ("p ** 2[0.5:10] * p ** 3[2:]", [2, 3, 5, 5, 4]),
        ("negation(p * p, p, 2[0.5:10, else 0])", [2, 0, 0, 0, 2]),
    ],
)
def test_exponents_over_noise_levels(text, values):
    term = formula(text, MODELS).term
    levels = [0.1, 0.5, 3.0, 10.0, 20.0]
    found = [float(sum(term.exponents(torch.tensor(s, dtype=torch.float64)), 0.0)) for s in levels]
    assert found == pytest.approx(values)


def test_intervals_that_are_equal_cancel():
    found = formula("p ** 2[0.5:10] / p ** 2[0.5:10] * q", MODELS)
    assert normal_form(found) == "{q: 1}"


def test_exponents_over_noise_levels_are_said_in_words():
    assert exponent(Exponent(1.0) + Exponent(2.0) * Exponent(Within(0.0, 10.0))) == "(3 below sigma = 10, 1 above)"
    found = formula("p * q ** 2[0.5:10]", MODELS)
    assert normal_form(found) == "{p: 1, q: (1 below sigma = 0.5, 2 up to 10, 1 above)}"
    assert "changes" in path_reason(found)


def test_formulas_that_differ_in_an_interval_have_different_names():
    """A checkpoint knows its formula by that."""
    names = {formula(f"p ** {e}", MODELS).term.name() for e in ("2[0.5:10]", "2[0.5:9]", "3[0.5:10]", "2[:10]", "2")}
    assert len(names) == 5


def test_rows_of_labels_are_one_for_each_draw(library):
    term = formula("digits(label=[3, 1, 4])", library).term
    assert term.per_row
    x = torch.zeros(3, 1, 8, 8)
    for k, label in enumerate((3, 1, 4)):
        alone = formula(f"digits(label={label})", library).term
        torch.testing.assert_close(term.energy(x, 1.0)[k], alone.energy(x, 1.0)[k])


class Told(Gaussian):
    """A density that repeats what it was given."""

    conditions = frozenset({"word", "number", "flag", "list", "other"})

    def _given(self, **condition):
        self.told = condition
        if condition.get("number") == 99:
            raise ValueError("number is below 90, got 99")
        return self


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a b'", "a b"),
        ('"it\'s"', "it's"),
        ("''", ""),
        ("3", 3),
        ("-3", -3),
        ("-2.5e1", -25.0),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("[1, 2, -3]", (1, 2, -3)),
        ("['a', 2.5, true]", ("a", 2.5, True)),
        ("[[1, 2], [3, 4]]", ((1, 2), (3, 4))),
    ],
)
def test_conditions_are_literals(text, value):
    told = Told(torch.zeros(2), 1.0)
    formula(f"m(word={text}, number=1)", {"m": told})
    assert told.told == {"word": value, "number": 1}
    assert type(told.told["word"]) is type(value)


# ------------------------------------------------------------------- mistakes

MALFORMED = [
    ("", "the formula is empty", 0),
    ("   ", "the formula is empty", 0),
    ("circle * * bar", "expected a model, a number or '(', got '*'", 9),
    ("circle *", "got the end", 8),
    ("* circle", "got '*'", 0),
    ("circle * (bar", "expected ')' to close the '(' in column 10, got the end", 13),
    ("circle * bar)", "this ')' closes nothing", 12),
    ("circle bar", "products are written with *", 7),
    ("2circle", "write 2 * circle", 1),
    ("(circle)(bar)", "products are written with *", 8),
    ("circle ^ 2", "powers are written p ** 2", 7),
    ("circle | bar", "OR is written p + q", 7),
    ("circle & bar", "AND is written p * q", 7),
    ("~circle", "NOT is written", 0),
    ("circle AND bar", "AND is written p * q", 7),
    ("circle or bar", "OR is written p + q", 7),
    ("not circle", "NOT is written", 0),
    ("circle // bar", "with one /", 8),
    ("circle - bar", "densities are not subtracted", 7),
    ("-circle", "a density has no sign", 0),
    ("circle * -bar", "a density has no sign", 9),
    ("circle ** bar", "an exponent is a number, got a density", 10),
    ("2 ** circle", "an exponent is a number, got a density", 5),
    ("circle + 1", "a density is added to a density, got the number 1", 9),
    ("1 + circle", "a density is added to a density, got the number 1", 0),
    ("3 * 4", "a formula is a density", 0),
    ("-2 * circle", "scaled by a positive number", 0),
    ("circle * 0", "scaled by a positive number", 9),
    ("circle / 0", "division by zero", 9),
    ("1e999 * circle", "numbers are 0 or between", 0),
    ("circle * 1e-300", "numbers are 0 or between", 9),
    ("1.2.3 * circle", "is no number", 3),
    ("0.1234567890123456789012345 * circle", "at most 24 characters", 0),
    ("circle ** 1e4", "exponents are between -1000 and 1000", 10),
    ("(circle ** 100) ** 100", "becomes 10000", 16),
    ("9**9**9 * circle", "exponents are between", 3),
    ("circle ** 9**9**9", "exponents are between", 13),
    ("0 ** -1 * circle", "is no number", 2),
    ("(0 - 1) ** 0.5 * circle", "is no number", 8),
    ("circle(label=3)", "'label'; it takes none", 7),
    ("digits(lable=3)", "did you mean 'label'", 7),
    ("digits(label=10)", "label is an int in [0, 10), got 10", 13),
    ("circle * digits(label=-1)", "label is an int in [0, 10), got -1", 22),
    ("digits(label='three')", "got 'three'", 13),
    ("digits(label=[1, 12])", "labels are ints in [0, 10)", 13),
    ("digits(label=three)", "strings are written in quotes, 'three'", 13),
    ("digits(3)", "digits(NAME=VALUE)", 7),
    ("digits()", "or no parentheses at all", 7),
    ("digits(label)", "expected '=' and a value, got ')'", 12),
    ("digits(label=1, label=2)", "label is given twice", 16),
    ("digits(label=1 2)", "expected ')' or ',' after a condition", 15),
    ("digits(label=)", "expected a number, a string", 13),
    ("digits(label=--1)", "expected a number after '-'", 14),
    ("digits(label=[1, 2)", "to close the '[' in column 14", 18),
    ("circl * bar", "did you mean 'circle'?", 0),
    ("bar * Circle", "did you mean 'circle'?", 6),
    ("'circle", "no closing '", 0),
    ("circle * digits", "terms over different variables", 9),
    ("circle + digits", "terms over different variables", 9),
    ("digits-classifier * digits", "in quotes, 'digits-classifier'", 6),
    ("mixture", "expected '(' after the function mixture", 7),
    ("mixture()", "got ')'", 8),
    ("mixture(1, circle)", "expected a density, got a number", 8),
    ("mixture(circle, bar, weights=[1])", "2 terms and 1 weights", 29),
    ("mixture(circle, bar, weights=[1, -1])", "positive", 29),
    ("mixture(circle, bar, weights=['a', 1])", "weights are positive numbers", 29),
    ("mixture(circle, bar, weights=2)", "expected a list of weights", 29),
    ("mixture(circle, bar, wights=[1, 2])", "mixture takes weights= by name", 21),
    ("mixture(weights=[1, 2], circle)", "comes last", 24),
    ("guidance(circle, bar)", "guidance also needs power", 0),
    ("guidance(circle, bar, 2, 3)", "guidance takes two densities and power", 0),
    ("guidance(circle, bar, bar)", "an exponent is a number", 22),
    ("guidance(circle, 2, 2)", "expected a density, got a number", 17),
    ("negation(circle)", "negation takes two densities", 0),
    ("negation(circle, bar, 2, gamma=3)", "negation takes two densities", 0),
    ("bounded_negation(circle, bar, -1)", ">= 0, got -1", 30),
    ("bounded_negation(circle, bar, 2[0.5:1])", "one number, got an interval", 30),
    ("circle ** 2[3:1]", "rises", 14),
    ("circle ** 2[1:2", "to close the '[' in column 12", 15),
    ("circle ** 2[1]", "expected ':'", 13),
    ("circle ** 2[-1:2]", "noise levels are not negative", 12),
    ("circle ** 2[1:2, 3]", "'else'", 17),
    ("circle ** 2[1:2, or 3]", "'else'", 17),
    ("circle[1:2]", "only an exponent has an interval", 6),
    ("2[1:2] * circle", "only an exponent has an interval", 1),
    ("circle = bar", "conditions are given to a model", 7),
    ("circle, bar", "expected one of + * / **", 6),
    ("else * circle", "'else' is no model", 0),
    ("circle # a comment", "there are no comments", 7),
    ("circle × bar", "products are written p * q", 7),
    ("circle * ‘bar’", "strings are written in", 9),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason", "position"), MALFORMED)
def test_a_mistake_is_shown_where_it_is(text, reason, position, library):
    with pytest.raises(FormulaError) as caught:
        formula(text, library)
    assert reason in caught.value.reason
    assert caught.value.position == position, str(caught.value)
    said, line, caret = str(caught.value).split("\n")
    assert said == caught.value.reason
    assert line == f"  {text}"
    assert caret == " " * (2 + position) + "^"


def test_the_caret_is_below_the_line_of_the_mistake(library):
    with pytest.raises(FormulaError) as caught:
        formula("circle *\n\tbr *\n  bar", library)
    assert str(caught.value).split("\n")[1:] == ["   br *", "   ^"]


def test_a_condition_is_blamed_by_its_name():
    for text, position in (
        ("m(other=1, number=99, word='a')", 18),
        ("m(number=99, other=1)", 9),
        ("m(other=99, number=99)", 19),
    ):
        with pytest.raises(FormulaError, match="number is below 90") as caught:
            formula(text, {"m": Told(torch.zeros(2), 1.0)})
        assert caught.value.position == position


def test_an_error_can_be_sent_to_another_process():
    with pytest.raises(FormulaError) as caught:
        parse("p * ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# ------------------------------------------------- formulas that try to reach Python

HOSTILE = [
    "__import__('os').system('true')",
    "__import__('os')",
    "circle.__class__",
    "circle.parameters()",
    "digits.given(label=3)",
    "digits(label=__import__('os'))",
    "digits(label=(lambda: 3)())",
    "digits(label=open('x'))",
    "digits(**{'label': 3})",
    "digits(*[3])",
    "lambda x: x",
    "f'{circle}'",
    "digits(label=f'3')",
    "b'circle'",
    "r'circle' * bar",
    "[p for p in circle]",
    "(circle for p in bar)",
    "{circle}",
    "circle if 1 else bar",
    "circle; bar",
    "circle\nbar",
    "import os",
    "from os import path",
    "`circle`",
    "$(circle)",
    "circle @ bar",
    "(c := circle)",
    "circle == bar",
    "circle[0]",
    "circle[__class__]",
    "exec('1')",
    "eval('circle')",
    "open('/etc/passwd')",
    "getattr(circle, 'sample')",
    "globals()",
    "None",
    "...",
    "circle \\\n * bar",
    "circle % bar",
    "circle * 0x10",
    "circle * 1_000",
    "circle * 1j",
    "circle * inf",
    "circle * nan",
    "circle * 1e309",
    "9**9**9",
    "circle ** 9**9**9**9",
    "9" * 30,
    "circle * " + "1" * 5000,
    "(" * 100 + "circle" + ")" * 100,
    "-" * 1000 + "1 * circle",
    "2" + "**2" * 500 + " * circle",
    "circle" + " ** 1" * 500,
    "digits(label=" + "[" * 200 + "1" + "]" * 200 + ")",
    "mixture(" * 100 + "circle" + ")" * 100,
    "circle" + " * circle" * 2000,
    "circle*" * 300 + "circle",
    "circle\x00",
    "circle\u202e * bar",
    "digits(label='a\x1b[31m')",
    "сircle",  # a Cyrillic letter
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:32].encode("unicode_escape").decode())
def test_nothing_of_a_formula_is_run_as_python(text, library, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("a formula reached Python")

    for name in ("eval", "exec", "compile", "__import__", "open"):
        if name not in ("__import__", "compile"):  # modules of the package are still imported
            monkeypatch.setattr(f"builtins.{name}", forbidden)
    with pytest.raises(FormulaError) as caught:
        formula(text, library)
    assert 0 <= caught.value.position <= len(text)
    assert len(caught.value.reason) < 400


def test_the_package_never_evaluates_text():
    """No module of formulas names eval, exec, compile, ast or getattr of a text from outside."""
    from pathlib import Path

    folder = Path(bm.models.__file__).parent / "formula"
    for file in folder.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        for word in ("eval(", "exec(", "import ast", "literal_eval", "pickle", "__import__", "importlib"):
            assert word not in source, f"{file.name} holds {word}"


def test_bounds_leave_room_for_real_formulas():
    deep = "(" * (DEEPEST - 1) + "p" + ")" * (DEEPEST - 1)
    assert formula(deep, MODELS).term is P
    long = "p * q" + " " * (LONGEST - 5)
    assert normal_form(formula(long, MODELS)) == "{p: 1, q: 1}"
    with pytest.raises(FormulaError, match="at most 4000 characters, got 4001"):
        formula(long + " ", MODELS)
    many = " * ".join(["p", "q"] * 100)
    assert formula(many, MODELS).term.exponents() == [100.0, 100.0]


def test_random_text_is_refused_or_understood():
    """Two thousand strings of pieces of formulas: a FormulaError or a density, and nothing else; seed fixed."""
    source = random.Random(1)
    pieces = [
        "p",
        "q",
        "(",
        ")",
        "*",
        "**",
        "/",
        "+",
        "-",
        "2",
        "0.5",
        "1e3",
        "[",
        "]",
        ":",
        ",",
        "=",
        "'a'",
        "mixture",
        "weights",
        "else",
        "gamma",
        "negation",
        "m",
        "number",
        "99",
        "true",
    ]
    pieces.append(" ")
    understood, positions = 0, []
    for _ in range(2000):
        text = "".join(source.choices(pieces, k=source.randint(1, 10)))
        try:
            formula(text, MODELS | {"m": Told(torch.zeros(2, dtype=torch.float64), 1.0)})
            understood += 1
        except FormulaError as error:
            positions.append((error.position, len(text)))
        except FileNotFoundError:
            assert "'a'" in text, text  # a path that is not there
    assert all(0 <= position <= length for position, length in positions)
    assert understood > 20


# ------------------------------------------------------------------ around it


def test_operands_are_those_written():
    assert formula("p * q", MODELS).operands == (P, Q)
    assert len(formula("guidance(p, q, 2) * guidance(p, r, 2)", MODELS).operands) == 2
    assert formula("p / q", MODELS).operands == ()
    assert formula("2 * p", MODELS).operands == ()


def test_sums_flatten():
    term = formula("0.5 * p + 0.25 * (q + r)", MODELS).term
    assert isinstance(term, Mixture)
    assert term.weights() == pytest.approx([0.5, 0.25, 0.25])


def test_conditions_and_their_ranges_are_known(library):
    assert conditions(library.load("digits")) == {"label": "0 … 9"}
    assert conditions(library.load("circle")) == {}


def test_a_formula_is_a_string():
    with pytest.raises(TypeError, match="a formula is a string"):
        formula(3)  # pyright: ignore[reportArgumentType]


def test_parsing_is_linear():
    """Ten times the text, about ten times the tokens looked at: no backtracking."""
    from boltzmix.models.formula import grammar

    looked = []
    original = grammar._Parser.take

    def counted(self):
        looked[-1] += 1
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar._Parser, "take", counted)
        for count in (10, 100):
            looked.append(0)
            parse(" * ".join(itertools.repeat("(p ** 2)", count)))
    assert looked[1] <= 11 * looked[0]
    assert math.isfinite(looked[1])
