"""Errors planted in the language of formulas, and the laws that notice each."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from boltzmix import compose
from boltzmix.compose import UHMC, Annealed, Gaussian, sample
from boltzmix.models.formula import FormulaError, Library, formula
from boltzmix.models.formula.describe import exponent, normal_form
from boltzmix.models.formula.explain import evaluations, forwards
from boltzmix.models.formula.samplers import named_sampler, short
from tests.mutations.harness import Mutation, law, verify

X = torch.tensor([[0.3, -0.2], [1.5, 0.7]], dtype=torch.float64)
P = Gaussian(torch.zeros(2, dtype=torch.float64), 1.0)
Q = Gaussian(torch.ones(2, dtype=torch.float64), 2.0)
R = Gaussian(torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.5)
MODELS = {"p": P, "q": Q, "r": R}
GRAMMAR, BUILD, TOKENS = (f"boltzmix.models.formula.{name}" for name in ("grammar", "build", "tokens"))


def means(text, meant):
    term = formula(text, MODELS).term
    for sigma in (None, 0.7):
        torch.testing.assert_close(term.energy(X, sigma), meant.energy(X, sigma), rtol=1e-9, atol=1e-9)


def points(text, position):
    with pytest.raises(FormulaError) as caught:
        formula(text, MODELS)
    assert caught.value.position == position


def caret(text, line, mark):
    with pytest.raises(FormulaError) as caught:
        formula(text, MODELS)
    assert str(caught.value).split("\n")[1:] == [line, mark]


def interval(text, values):
    term = formula(text, MODELS).term
    levels = (0.1, 0.5, 3.0, 10.0, 20.0)
    assert [float(sum(term.exponents(torch.tensor(s)), 0.0)) for s in levels] == pytest.approx(values)


def form(text, wanted):
    assert normal_form(formula(text, MODELS)) == wanted


class Told(Gaussian):
    conditions = frozenset({"number", "other"})

    def _given(self, **condition):
        raise ValueError("number is below 90, got 99")


def blames():
    with pytest.raises(FormulaError) as caught:
        formula("m(other=1, number=99)", {"m": Told(torch.zeros(2), 1.0)})
    assert caught.value.position == 18


def loads_once():
    library = Library()
    assert library.load("circle") is library.load("circle")
    assert formula("circle * circle", library).term.exponents() == [2.0]


def names_the_missing_file():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine.safetensors").write_bytes(b"")
        with pytest.raises(FileNotFoundError, match=r"mine\.json is missing"):
            formula("mine", {"mine": os.path.join(folder, "mine.safetensors")})


def counts():
    fn = compose.term(P.score, kind="score", path="noised", event_shape=2, sigma_range=(0.01, 10.0))
    for text in ("annealed-mala:levels=3", "annealed-uhmc:levels=4,sweeps=3"):
        sampler, _ = named_sampler(text, fn**2)
        made = sample(fn**2, 4000, sampler=sampler, seed=0, dtype=torch.float64).info.evaluations
        announced = evaluations(sampler, fn**2, 4000)
        assert announced is not None
        assert announced <= made < announced + 0.75


def one_forward_for_all_conditions():
    assert forwards(formula("digits * digits(label=1)").term) == 1
    assert forwards(formula("circle * bar").term) == 2


def settings_reach_their_owner():
    sampler, _ = named_sampler("annealed-uhmc:levels=8,num_leapfrog=5", P)
    assert sampler == Annealed(levels=8, kernel=UHMC(num_leapfrog=5))
    assert short(sampler) == "Annealed(levels=8, kernel=UHMC(num_leapfrog=5))"


def lists_of_settings_are_kept_whole():
    assert named_sampler("annealed:levels=[0.5,1],sweeps=3", P)[0] == Annealed(levels=(0.5, 1), sweeps=3)


def names_differ():
    assert len({formula(f"p ** {e}", MODELS).term.name() for e in ("2[0.5:10]", "2[0.5:9]", "3[0.5:10]")}) == 3


def mismatch_at(position):
    with pytest.raises(FormulaError, match="different variables") as caught:
        formula("p * other", MODELS | {"other": Gaussian(torch.zeros(3), 1.0)})
    assert caught.value.position == position


def reason(text, wanted):
    with pytest.raises(FormulaError) as caught:
        formula(text, MODELS)
    assert wanted in caught.value.reason


def said(text, wanted):
    ((_, power),) = formula(text, MODELS).term.pairs()
    assert exponent(power) == wanted


MUTATIONS = [
    Mutation(
        "powers bind to the left",
        GRAMMAR,
        "value = self.signed()",
        "value = self.operand()",
        law(means, "p ** 2 ** 3", P**8),
    ),
    Mutation(
        "a product before its powers",
        GRAMMAR,
        "return self.chain(self.signed,",
        "return self.chain(self.operand,",
        law(means, "p * q ** 2", P * Q**2),
    ),
    Mutation(
        "quotients of quotients are products",
        BUILD,
        '-1.0 if operator == "/" else 1.0',
        '1.0 if operator == "/" else 1.0',
        law(means, "p * q / r", P * Q / R),
    ),
    Mutation("a scale is dropped", BUILD, "math.log(scale)", "0.0", law(means, "3 * (p * q)", 3 * (P * Q))),
    Mutation(
        "division by a number multiplies",
        BUILD,
        'scale * value if operator == "*" else scale / value',
        "scale * value",
        law(means, "p * q / 4", P * Q / 4),
    ),
    Mutation(
        "a sign is lost",
        BUILD,
        'return -found if node.operator == "-" else found',
        "return found",
        law(means, "p * q ** -0.5", P * Q**-0.5),
    ),
    Mutation(
        "NOT is AND",
        BUILD,
        "make = negation if name ==",
        "make = guidance if name ==",
        law(means, "negation(p, q, 0.5)", P / Q**0.5),
    ),
    Mutation(
        "guidance the wrong way round",
        BUILD,
        "make(p, q, exponent)",
        "make(q, p, exponent)",
        law(means, "guidance(p, q, 3)", P * (Q / P) ** 3),
    ),
    Mutation(
        "weights are forgotten",
        BUILD,
        "mixture(terms, given)",
        "mixture(terms)",
        law(means, "mixture(p, q, weights=[1, 3])", compose.mixture([P, Q], [1, 3])),
    ),
    Mutation(
        "sums are mixtures of equal weights",
        BUILD,
        "return Mixture(members, [0.0] * len(members))",
        "return Mixture(members, [-1.0] * len(members))",
        law(means, "p + q", P + Q),
    ),
    Mutation(
        "an interval without its end",
        "boltzmix.models.formula.within",
        "sigma <= self.high",
        "sigma < self.high",
        law(interval, "p ** 2[0.5:10]", [1, 2, 2, 2, 1]),
    ),
    Mutation(
        "nothing outside of the interval",
        BUILD,
        "1.0 if node.otherwise is None",
        "0.0 if node.otherwise is None",
        law(interval, "p ** 2[0.5:10]", [1, 2, 2, 2, 1]),
    ),
    Mutation(
        "the inside on top of the outside",
        BUILD,
        "Exponent(inside - outside)",
        "Exponent(inside)",
        law(interval, "p ** 2[0.5:10]", [1, 2, 2, 2, 1]),
    ),
    Mutation(
        "intervals that do not merge",
        BUILD,
        "self.windows.setdefault(window, Exponent(window))",
        "Exponent(Within(node.low, node.high))",
        law(form, "p ** 2[0.5:10] / p ** 2[0.5:10] * q", "{q: 1}"),
    ),
    Mutation(
        "a caret one off",
        "boltzmix.models.formula.errors",
        "self.position - start)}^",
        "self.position - start + 1)}^",
        law(caret, "p * (q", "  p * (q", "        ^"),
    ),
    Mutation(
        "a caret that forgets its line",
        "boltzmix.models.formula.errors",
        "self.position - start)}^",
        "self.position)}^",
        law(caret, "p *\n qq", "   qq", "   ^"),
    ),
    Mutation(
        "the position of the operator",
        BUILD,
        'if operator == "/" else 1.0, operand.position)',
        'if operator == "/" else 1.0, node.position)',
        law(mismatch_at, 4),
    ),
    Mutation(
        "the first condition is always blamed",
        BUILD,
        "best = max(node.arguments, key=matches)",
        "best = node.arguments[0]",
        blames,
    ),
    Mutation(
        "no bound on nesting",
        GRAMMAR,
        "if self.depth > DEEPEST:",
        "if self.depth > 10 * DEEPEST:",
        law(points, "(" * 60 + "p" + ")" * 60, 40),
    ),
    Mutation(
        "no bound on length",
        TOKENS,
        "if len(text) > LONGEST:",
        "if len(text) > 2 * LONGEST:",
        law(points, "p" + " " * 5000, 4000),
    ),
    Mutation(
        "numbers without bounds", TOKENS, "not SMALLEST <= abs(value) <= LARGEST", "False", law(points, "1e20 * p", 0)
    ),
    Mutation("exponents without bounds", BUILD, "abs(found) > LARGEST_EXPONENT", "False", law(points, "p ** 1e5", 5)),
    Mutation(
        "powers of powers without bounds",
        BUILD,
        "abs(exponent.constant or 0.0) > LARGEST_EXPONENT",
        "False",
        law(points, "(p ** 900) ** 900", 11),
    ),
    Mutation("dunders are names", TOKENS, '"__" in token.text', "False", law(reason, "__p", "run as Python")),
    Mutation(
        "keywords are names", TOKENS, "keyword.iskeyword(token.text)", "False", law(reason, "lambda", "run as Python")
    ),
    Mutation(
        "strings with a prefix",
        TOKENS,
        'found[-1].kind in ("name", "number")',
        "False",
        law(reason, "f'p'", "no prefix"),
    ),
    Mutation(
        "what stands behind the formula is not read",
        GRAMMAR,
        'if self.here.kind != "end":\n            raise',
        "if False:\n            raise",
        law(points, "p q", 2),
    ),
    Mutation(
        "a model for each mention",
        "boltzmix.models.formula.library",
        "if key not in self._loaded:",
        "if True:",
        law(loads_once),
    ),
    Mutation(
        "a missing file is passed over",
        "boltzmix.models.formula.library",
        "if not file.is_file():",
        "if False:",
        law(names_the_missing_file),
    ),
    Mutation(
        "evaluations of the line integral forgotten",
        "boltzmix.models.formula.explain",
        "each * (1 + nodes)",
        "each",
        law(counts),
    ),
    Mutation(
        "moves forgotten",
        "boltzmix.models.formula.explain",
        "levels * plan.moves + final",
        "levels + final",
        law(counts),
    ),
    Mutation(
        "conditions as forwards",
        "boltzmix.models.formula.explain",
        'id(getattr(leaf, "core", getattr(leaf, "net", leaf)))',
        "leaf.key()",
        law(one_forward_for_all_conditions),
    ),
    Mutation(
        "kernel settings to the sampler",
        "boltzmix.models.formula.samplers",
        "for k, v in settings.items() if known[k][0]}))",
        "for k, v in settings.items() if False}))",
        law(settings_reach_their_owner),
    ),
    Mutation(
        "commas within lists",
        "boltzmix.models.formula.samplers",
        r",(?![^\[]*\])",
        ",",
        law(lists_of_settings_are_kept_whole),
    ),
    Mutation(
        "the value outside said for the inside",
        "boltzmix.models.formula.describe",
        "0.5 * (a + b)",
        "0.0 * (a + b)",
        law(said, "p ** 2[0.5:10]", "(1 below sigma = 0.5, 2 up to 10, 1 above)"),
    ),
    Mutation(
        "intervals without a name",
        "boltzmix.compose.exponent",
        "if type(factor).__str__ is not object.__str__ else",
        "if False else",
        law(names_differ),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_error_is_noticed(mutation):
    verify(mutation)
