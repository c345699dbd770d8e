"""Samplers by name, and what --explain says of them beside what a run does."""

import dataclasses

import pytest
import torch

from boltzmix import compose
from boltzmix.compose import HMC, SMC, UHMC, ULA, Annealed, Gaussian, Reverse, sample
from boltzmix.compose.sample import choose_sampler
from boltzmix.models.formula import Library, formula
from boltzmix.models.formula.explain import briefly, evaluations, explain, forwards
from boltzmix.models.formula.samplers import choices, named_sampler, short

P, Q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 2.0)
RANGE = (0.01, 10.0)  # of noise levels, as networks have one
ENERGIES = {
    name: compose.term(g.energy, kind="energy", path="noised", event_shape=2, sigma_range=RANGE)
    for name, g in (("p", P), ("q", Q))
}
SCORES = {
    name: compose.term(g.score, kind="score", path="noised", event_shape=2, sigma_range=RANGE)
    for name, g in (("p", P), ("q", Q))
}


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("reverse", Reverse()),
        ("reverse-ddim", Reverse(solver="ddim")),
        ("reverse-dpmpp:steps=20,eta=0.5", Reverse(solver="dpmpp", steps=20, eta=0.5)),
        (
            "reverse-ddim:corrector=uhmc,corrections=2",
            Reverse(solver="ddim", corrector=UHMC(num_leapfrog=3), corrections=2),
        ),
        ("reverse:sigmas=[9,3,1.5]", Reverse(sigmas=(9, 3, 1.5))),
        ("reverse-ddim:clip=[-1,1]", Reverse(solver="ddim", clip=(-1, 1))),
        ("reverse-ddpm:variance=large", Reverse(solver="ddpm", variance="large")),
        ("smc", SMC()),
        ("SMC:cess=0.9,resample=false", SMC(cess=0.9, resample=False)),
        ("smc:levels=[0.5,1],path=noise", SMC(levels=(0.5, 1), path="noise")),
        ("annealed", Annealed()),
        ("annealed-ula:step_size=0.1", Annealed(kernel=ULA(step_size=0.1))),
        ("annealed-uhmc:levels=64,sweeps=4", Annealed(levels=64, sweeps=4, kernel=UHMC(num_leapfrog=3))),
        ("annealed-hmc:num_leapfrog=5,jitter=false", Annealed(kernel=HMC(num_leapfrog=5, jitter=False))),
    ],
)
def test_a_name_with_settings_is_a_sampler(text, wanted):
    assert named_sampler(text, P) == (wanted, "as asked")


def test_every_name_is_the_class_that_it_says():
    """Each name of this version builds, and its settings are fields of its classes."""
    known = choices()
    assert {"reverse", "reverse-ddim", "reverse-dpmpp", "smc", "ais", "annealed-ula", "annealed-uhmc", "annealed-mala",
            "annealed-hmc"} <= set(known)  # fmt: skip
    for name, choice in known.items():
        sampler, _ = named_sampler(name, P)
        assert type(sampler) is choice.classes[0]
        own = {f.name for f in dataclasses.fields(sampler)}
        if choice.kernel is not None:
            assert type(sampler.kernel) is choice.classes[1]
            own |= {f.name for f in dataclasses.fields(sampler.kernel)}
        assert set(choice.fields()) <= own
        assert all(getattr(sampler, key) == value for key, value in choice.settings.items())


def test_samplers_that_the_library_exports_have_a_name():
    for name, of in (("fkc", "FKC"), ("twisted", "Twisted"), ("superdiff-and", "SuperDiff"), ("exact", "Exact")):
        assert (name in choices()) == hasattr(compose, of), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smcc", "did you mean 'smc'?"),
        ("annealed-uhcm", "did you mean 'annealed-uhmc'?"),
        ("", "no sampler is called ''"),
        ("smc:", "key=value"),
        ("smc:cess", "key=value"),
        ("smc:=3", "key=value"),
        ("smc:cess=0.9,", "key=value"),
        ("smc:ces=0.9", "no setting 'ces'; did you mean 'cess'?"),
        ("smc:kernel=hmc", "no setting 'kernel'"),
        ("smc:record=true", "no setting 'record'"),
        ("smc:cess=0.9,cess=0.8", "cess is set twice"),
        ("smc:cess=2", "between 0 and 1, got 2"),
        ("smc:moves=two", "an int >= 1, got 'two'"),
        ("smc:levels=[0.5,1", "a list ends with ']'"),
        ("smc:path='noise'", "expected a number, a word"),
        ("smc:cess=__import__('os')", "expected a number, a word"),
        ("smc:cess=1e999", "between 0 and 1, got inf"),
        ("reverse-ddim:solver=heun", "no setting 'solver'"),
        ("reverse-ddim:corrector=hmcc", "did you mean 'hmc'?"),
        ("annealed-ula:num_leapfrog=3", "no setting 'num_leapfrog'"),
        ("auto:levels=3", "auto has no settings"),
    ],
)
def test_mistakes_about_samplers_say_what_there_is(text, said):
    with pytest.raises((ValueError, TypeError)) as caught:
        named_sampler(text, P)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_are_levels_where_a_sampler_has_these():
    assert named_sampler("reverse-ddim", P, 7)[0].steps == 7
    assert named_sampler("annealed-ula", P, 7)[0].levels == 7
    assert named_sampler("smc", P, 7)[0].levels == 7
    assert named_sampler("auto", P, 7)[0].levels == 7
    with pytest.raises(ValueError, match="say the same"):
        named_sampler("annealed:levels=3", P, 7)
    with pytest.raises(ValueError, match="samplers with steps or levels"):
        named_sampler("exact", P, 7)


def test_auto_is_what_sample_takes(library):
    for text, models in (("circle * bar", library), ("digits(label=1)", library), ("p * q", SCORES), ("p", SCORES)):
        term = formula(text, models).term
        assert named_sampler("auto", term) == choose_sampler(term, False)


def test_superdiff_has_the_factors_that_a_product_would_merge(library):
    if "superdiff-and" not in choices():
        pytest.skip("this version has no SuperDiff")
    plain = formula("circle * bar", library)
    assert named_sampler("superdiff-and", plain.term, None, plain.operands)[0].members is None
    guided = formula("guidance(digits, digits(label=1), 2) * guidance(digits, digits(label=2), 2)", library)
    members = named_sampler("superdiff-and", guided.term, None, guided.operands)[0].members
    assert [m.exponents() for m in members] == [[-1.0, 2.0], [-1.0, 2.0]]


# ------------------------------------------------------------------- explained


@pytest.mark.parametrize(
    "text",
    [
        "annealed-uhmc:levels=6,compile=false",
        "annealed-hmc:levels=5,sweeps=3,num_leapfrog=2,compile=false",
        "annealed-mala:levels=4,compile=false",
        "annealed-ula:levels=7,sweeps=1,compile=false",
        "smc:levels=6,moves=2,path=noise,compile=false",
        "ais:levels=5,final_moves=3,path=noise,compile=false",
        "reverse:steps=6",
        "reverse-ddim:steps=6",
        "reverse-dpmpp:steps=6",
    ],
)
@pytest.mark.parametrize("written", ["p * q", "p"])
@pytest.mark.filterwarnings("ignore::boltzmix.compose.SamplingWarning")
def test_the_evaluations_announced_are_those_made(text, written):
    """But for the search for a start, whose few hundred probes are shared by 4000 draws."""
    announced_and_made(text, formula(written, ENERGIES).term)


@pytest.mark.filterwarnings("ignore::boltzmix.compose.SamplingWarning")
@pytest.mark.parametrize("name", ["annealed-uhmc", "annealed-hmc", "annealed-mala", "annealed-ula", "reverse"])
def test_and_those_of_scores_alone(name):
    """Tests without energies integrate the score, at so many more evaluations."""
    announced_and_made(f"{name}:{'steps' if name == 'reverse' else 'levels'}=5", formula("p ** 2 * q", SCORES).term)


def announced_and_made(text, term):
    sampler, _ = named_sampler(text, term)
    draw = sample(term, 4000, sampler=sampler, seed=0)
    announced = evaluations(sampler, term, 4000)
    assert announced is not None
    assert announced <= draw.info.evaluations < announced + 0.75


def test_adaptive_samplers_are_not_announced(library):
    term = formula("circle * bar", library).term
    assert evaluations(SMC(), term, 10) is None


def test_conditions_of_one_network_are_one_forward(library):
    assert forwards(formula("digits * digits(label=1) / digits(label=2)", library).term) == 1
    assert forwards(formula("circle * bar", library).term) == 2
    assert forwards(formula("p", {"p": P}).term) == 0


def test_the_explanation(library):
    found = formula("digits * (digits(label=3) / digits) ** 2[0.5:10]", library)
    sampler, why = named_sampler("annealed-uhmc:levels=8", found.term)
    said = explain(found, sampler, why, 16)
    headings = [heading for heading, _ in said.rows if heading]
    assert headings == ["formula", "normal form", "one draw", "path", "energies", "sampler", "plan", "cost", "time"]
    text = str(said)
    for words in (
        "digits(label=3): (1 below sigma = 0.5, 2 up to 10, 1 above)",
        "an exponent that changes",
        "Annealed(levels=8, kernel=UHMC(num_leapfrog=3)): as asked",
        "8 levels: sigma =",
        "2 steps of UHMC(num_leapfrog=3) at each level, 3 evaluations a step; step size adapted",
        "57 evaluations for each of 16 draws",
        "114 network rows each",
        "is 1 forward of the networks",
        "just now",
    ):
        assert words in text, words
    assert said.data["evaluations_per_draw"] == 57
    assert said.data["forwards_per_evaluation"] == 1
    assert said.data["seconds"] > 0


def test_the_explanation_of_adaptive_levels_comes_from_a_short_run(library):
    found = formula("circle * bar", library)
    sampler, why = named_sampler("smc:cess=0.7,compile=false", found.term)
    said = explain(found, sampler, why, 200)
    assert "in a short run of 128 draws" in str(said)
    draw = sample(found.term, 200, sampler=sampler, seed=0)
    assert said.data["evaluations_per_draw"] == pytest.approx(draw.info.evaluations, rel=0.5)


@pytest.mark.filterwarnings("ignore::boltzmix.compose.SamplingWarning")
def test_the_explanation_of_a_sum(library):
    found = formula("0.5 * circle + 0.5 * ring", library)
    sampler, why = named_sampler("smc:levels=5,path=noise,compile=false", found.term)
    said = explain(found, sampler, why, 1000)
    assert "2 members of a sum" in str(said)
    draw = sample(found.term, 1000, sampler=sampler, seed=0)
    assert said.data["evaluations_per_draw"] == pytest.approx(draw.info.evaluations, rel=0.1)
    assert said.data["network_rows_per_draw"] == pytest.approx(draw.info.network_rows, rel=0.1)


def test_what_will_not_start_is_said_beforehand(library):
    found = formula("circle / bar ** 2", library)
    sampler, why = named_sampler("annealed:levels=4,compile=false", found.term)
    said = str(explain(found, sampler, why, 8))
    assert "quotients" in said or "will not start" in said


def test_an_explanation_changes_nothing(library):
    """The run after it draws what it draws without it."""
    found = formula("circle * bar", library)
    sampler, why = named_sampler("annealed:levels=3,compile=false", found.term)
    before = sample(found.term, 8, sampler=sampler, seed=0).x
    state = torch.get_rng_state()
    explain(found, sampler, why, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sample(found.term, 8, sampler=sampler, seed=0).x, before)


def test_the_short_version(library):
    found = formula("digits * (digits(label=3) / digits) ** 2", library)
    sampler, why = named_sampler("annealed:levels=4", found.term)
    assert briefly(found, sampler, why, 3) == (
        "{digits: -1, digits(label=3): 2}, a path that is annealed\n"
        "3 draws by Annealed(levels=4), as asked, 29 evaluations each of 2 network rows"
    )


def test_settings_at_their_default_are_not_said():
    assert short(Annealed(levels=4, kernel=UHMC(num_leapfrog=3))) == "Annealed(levels=4, kernel=UHMC(num_leapfrog=3))"
    assert short(SMC()) == "SMC()"
