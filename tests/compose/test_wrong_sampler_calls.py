"""Wrong calls to samplers, kernels and ``sample``: each names what came, what was expected and what to write."""

import math

import pytest
import torch

from boltzmix.compose.adaptation import Windows, window_adaptation
from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp
from boltzmix.compose.diagnostics import ess
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import MissingEnergy, NonFinite, NotNormalizable, ScopeError
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC, MALA, NUTS, UHMC, ULA, EllipticalSlice, Gibbs, ParallelTempering, Tune
from boltzmix.compose.mixture import mixture
from boltzmix.compose.product import product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import AIS, MCMC, SMC, Annealed, Ladder, Reverse

P, Q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 0.5)
LAPLACE = term(lambda x: x.abs().sum(-1), kind="energy", event_shape=2)
SCORE = term(
    lambda x, s: -x / (1 + s**2), kind="score", path="noised", event_shape=2, name="net", sigma_range=(0.01, 80.0)
)
STATIC_SCORE = term(lambda x: -x, kind="score", event_shape=2, name="force")
COLUMN = term(lambda x: x.abs().sum(-1, keepdim=True), kind="energy", event_shape=2, name="column")
COUNTS = term(lambda x: x.sum(-1) * 0.0, kind="energy", event_shape=2, support="integers(4)", name="counts")
KNOWN = Clamp(torch.tensor([True, False]), torch.zeros(2))
ROWS = Clamp(torch.tensor([True, False]), torch.zeros(5, 2))

CALLS = {
    # sample()
    "no term": (lambda: sample(lambda x: x, 10), TypeError, ["function", "boltzmix.term"]),
    "a sampler's class": (lambda: sample(P, 10, sampler=SMC), TypeError, ["class SMC", "write SMC()"]),
    "a kernel as sampler": (lambda: sample(P, 10, sampler=HMC()), TypeError, ["got HMC", "MCMC("]),
    "a kernel in place of n": (lambda: sample(P, HMC()), TypeError, ["got HMC", "sampler=MCMC(HMC("]),
    "no chains": (lambda: sample(P, chains=0), ValueError, ["number of chains", "got 0"]),
    "windows for Gibbs": (
        lambda: sample(COUNTS, chains=2, sampler=MCMC(Gibbs(), adapt=Windows(), warmup=5, draws=5)),
        ValueError,
        ["Gibbs has no step size", "leave adapt="],
    ),
    "windows for elliptical slices": (
        lambda: sample(P, chains=2, sampler=MCMC(EllipticalSlice(), adapt=Windows(), warmup=5, draws=5)),
        ValueError,
        ["EllipticalSlice has no step size", "leave adapt="],
    ),
    "windows for a ladder": (
        lambda: sample(P, chains=2, sampler=MCMC(ParallelTempering(), adapt=Windows(), warmup=5, draws=5)),
        TypeError,
        ["ParallelTempering takes adapt=True", "Temperatures("],
    ),
    "a warm-up for a kernel's class": (
        lambda: window_adaptation(HMC, ravel(P), torch.zeros(2, 2)),
        TypeError,
        ["class HMC", "write HMC()"],
    ),
    "chains that need energies of a score": (
        lambda: sample(STATIC_SCORE, chains=2, sampler=MCMC(NUTS())),
        MissingEnergy,
        ["force has only a score", "MCMC(MicrocanonicalLangevin())"],
    ),
    "neither n nor chains": (lambda: sample(P), ValueError, ["n=", "chains="]),
    "both n and chains": (lambda: sample(P, 10, chains=4), ValueError, ["n=", "chains=", "not both"]),
    "n of zero": (lambda: sample(P, 0), ValueError, ["positive int", "got 0"]),
    "n of 10.0": (lambda: sample(P, 10.0), ValueError, ["positive int", "got 10.0"]),
    "n as a bool": (lambda: sample(P, True), ValueError, ["positive int", "got True"]),
    "chains for SMC": (lambda: sample(P, chains=4, sampler=SMC()), ValueError, ["SMC takes n="]),
    "n for MCMC": (lambda: sample(P, 4, sampler=MCMC()), ValueError, ["MCMC takes chains="]),
    "an integer dtype": (lambda: sample(P, 4, dtype=torch.int64), TypeError, ["floating-point", "torch.int64"]),
    "half precision": (
        lambda: sample(LAPLACE, 4, dtype=torch.float16),
        TypeError,
        ["float32 or float64", "torch.float16 was asked for", "cast=True"],
    ),
    "a model in half precision": (
        lambda: sample(Gaussian(torch.zeros(2, dtype=torch.bfloat16), 1.0), 4, sampler=Annealed()),
        TypeError,
        ["torch.bfloat16 is that of Gaussian", "cast=True", ".float()"],
    ),
    "levels that can be drawn exactly": (
        lambda: sample(term(torch.distributions.Bernoulli(0.5)), 4, sampler=SMC()),
        TypeError,
        ["discrete", ".sample(n, generator)"],
    ),
    "a static formula with a condition for each draw": (
        lambda: sample(LAPLACE * ROWS, 5),
        ValueError,
        ["a condition for each draw", "no noise levels", "chains=5"],
    ),
    "a seed of 1.5": (lambda: sample(P, 4, seed=1.5), TypeError, ["seed is an int", "float"]),
    "a string as seed": (lambda: sample(P, 4, seed="0"), TypeError, ["seed is an int", "str"]),
    "a tensor as init for SMC": (
        lambda: sample(P, 4, init=torch.zeros(4, 2)),
        TypeError,
        ["init for SMC", "term", "Tensor"],
    ),
    "discrete variables": (lambda: sample(COUNTS, 4), TypeError, ["discrete", "integers(4)", ".given("]),
    "static and score-only": (lambda: sample(STATIC_SCORE, 4), MissingEnergy, ["force", "static", "MCMC(UHMC("]),
    # settings of SMC, AIS and Annealed
    "levels of zero": (lambda: SMC(levels=0), ValueError, ["at least 1", "got 0"]),
    "levels as a word": (lambda: SMC(levels="many"), ValueError, ["adaptive", "'many'"]),
    "levels that fall": (lambda: SMC(levels=[0.5, 0.2, 1.0]), ValueError, ["increasing", "end in 1"]),
    "levels that stop early": (lambda: SMC(levels=[0.2, 0.5]), ValueError, ["end in 1", "[0.2, 0.5]"]),
    "levels as a bool": (lambda: SMC(levels=True), ValueError, ["adaptive", "True"]),
    "levels with words": (lambda: SMC(levels=["a", 1.0]), TypeError, ["increasing u", "'a'"]),
    "levels of 2.5": (lambda: SMC(levels=2.5), TypeError, ["an int or a list", "2.5"]),
    "levels with NaN": (lambda: SMC(levels=[float("nan"), 1.0]), ValueError, ["increasing u", "nan"]),
    "an unknown path": (lambda: SMC(path="direct"), ValueError, ["noise", "geometric", "'direct'"]),
    "cess above one": (lambda: SMC(cess=1.5), ValueError, ["cess", "between 0 and 1", "1.5"]),
    "cess as a string": (lambda: SMC(cess="high"), ValueError, ["cess", "'high'"]),
    "ess_threshold of one": (lambda: SMC(ess_threshold=1.0), ValueError, ["ess_threshold", "1.0"]),
    "no moves": (lambda: SMC(moves=0), ValueError, ["moves", ">= 1", "got 0"]),
    "no max_levels": (lambda: SMC(max_levels=0), ValueError, ["max_levels", "got 0"]),
    "a kernel's class": (lambda: SMC(kernel=HMC), TypeError, ["class HMC", "write HMC()"]),
    "a string as kernel": (lambda: AIS(kernel="hmc"), TypeError, ["AIS", "HMC()", "'hmc'"]),
    "adaptive Annealed": (lambda: Annealed(levels="adaptive"), ValueError, ["number of levels", "SMC"]),
    "no sweeps": (lambda: Annealed(sweeps=0), ValueError, ["sweeps", "got 0"]),
    "an unadjusted kernel for SMC": (
        lambda: sample(P * Q, 10, sampler=SMC(kernel=ULA())),
        TypeError,
        ["ULA is unadjusted", "HMC or MALA", "Annealed"],
    ),
    "SMC on scores": (
        lambda: sample(SCORE, 10, sampler=SMC()),
        MissingEnergy,
        ["SMC needs energies", "net", "Reverse"],
    ),
    "NUTS on scores": (
        lambda: sample(SCORE, 10, sampler=Annealed(kernel=NUTS())),
        MissingEnergy,
        ["NUTS() needs energies", "UHMC", "integrate the score", "HMC"],
    ),
    "nodes that there is no rule for": (lambda: MALA(nodes=4), ValueError, ["MALA", "[0, 1, 2, 3]", "got 4"]),
    "nodes as a flag": (lambda: HMC(nodes=True), ValueError, ["HMC", "[0, 1, 2, 3]", "got True"]),
    "a noise path without noise": (
        lambda: sample(LAPLACE, 10, sampler=SMC(path="noise")),
        ValueError,
        ["changes with sigma", "static"],
    ),
    "an exact start without a sampler": (
        lambda: sample(LAPLACE, 10, sampler=SMC(path="exact-start")),
        ValueError,
        ["normalised factor", "has none"],
    ),
    "init with a noise path": (
        lambda: sample(P * Q, 10, init=P, sampler=SMC(path="noise")),
        ValueError,
        ["own start", "geometric"],
    ),
    "init that is not normalised": (lambda: sample(LAPLACE, 10, init=2.0 * P), TypeError, ["normalised", "Gaussian"]),
    "init over another variable": (lambda: sample(LAPLACE, 10, init=P.on("a")), ScopeError, ["init is over", "a"]),
    "init of another shape": (
        lambda: sample(LAPLACE, 10, init=Gaussian(torch.zeros(3), 1.0)),
        ScopeError,
        ["(2,)", "(3,)"],
    ),
    "init with a Clamp": (lambda: sample(P * LAPLACE * KNOWN, 10, init=P), ValueError, ["init=", "Clamp"]),
    "a condition per draw under SMC": (
        lambda: sample(P * ROWS, 5, sampler=SMC()),
        ValueError,
        ["condition for each draw", "Annealed"],
    ),
    "too few conditions": (
        lambda: sample(P * ROWS, 6, sampler=Annealed()),
        ValueError,
        ["holds 5 conditions", "6 draws"],
    ),
    "a Clamp alone": (lambda: sample(KNOWN, 5), ValueError, ["no density", "prior * Clamp"]),
    "a Clamp inside a sum": (lambda: sample(P * KNOWN + Q, 5), ScopeError, ["outermost product"]),
    "everything clamped": (
        lambda: sample(P * Clamp(torch.ones(2, dtype=torch.bool), torch.zeros(2)), 5),
        ValueError,
        ["every coordinate"],
    ),
    "two Clamps on one coordinate": (
        lambda: sample(P * KNOWN * Clamp(torch.tensor([True, False]), torch.ones(2)), 5),
        ValueError,
        ["two Clamps"],
    ),
    "energies in a column": (lambda: sample(COLUMN, 10), ValueError, ["column", "(1", "sum over the event"]),
    "a score-only mixture in a product": (
        lambda: sample(product(mixture([SCORE, STATIC_SCORE]), P), 10),
        MissingEnergy,
        ["mixes score-only members"],
    ),
    "a score-only mixture under MCMC": (
        lambda: sample(mixture([SCORE, STATIC_SCORE]), chains=2, sampler=MCMC(UHMC(step_size=0.1))),
        MissingEnergy,
        ["mixes score-only members", "top level"],
    ),
    "an improper quotient": (lambda: sample(P / Q, 10), NotNormalizable, ["no finite integral"]),
    # Reverse
    "no steps": (lambda: Reverse(steps=0), ValueError, ["steps >= 1", "got 0"]),
    "an unknown solver": (lambda: Reverse(solver="rk45"), ValueError, ["heun", "dpmpp", "'rk45'"]),
    "rising sigmas": (lambda: Reverse(sigmas=(0.1, 1.0)), ValueError, ["strictly decreasing", "[0.1, 1.0]"]),
    "a sigma of zero": (lambda: Reverse(sigmas=(1.0, 0.0)), ValueError, ["positive"]),
    "sigmas that are NaN": (lambda: Reverse(sigmas=(float("nan"),)), ValueError, ["finite", "nan"]),
    "a rho of zero": (lambda: Reverse(rho=0), ValueError, ["rho", "positive", "got 0"]),
    "sigmas outside the range": (
        lambda: sample(SCORE, 4, sampler=Reverse(sigmas=(200.0, 1.0))),
        ValueError,
        ["net", "[0.01, 80]", "200"],
    ),
    "Reverse on a static term": (lambda: sample(LAPLACE, 4, sampler=Reverse()), TypeError, ["static", "SMC or MCMC"]),
    "Reverse with a term as init": (
        lambda: sample(SCORE, 4, init=P, sampler=Reverse()),
        TypeError,
        ["tensor (n, *event)", "init=term.sample(n)"],
    ),
    "Reverse with init and no level": (
        lambda: sample(P, 4, init=torch.zeros(4, 2), sampler=Reverse()),
        ValueError,
        ["first level", "Reverse(sigmas="],
    ),
    "Reverse with too few starts": (
        lambda: sample(SCORE, 4, init=torch.zeros(3, 2), sampler=Reverse()),
        ValueError,
        ["3 states", "n=4"],
    ),
    "Reverse with starts of another shape": (
        lambda: sample(SCORE, 4, init=torch.zeros(4, 3), sampler=Reverse()),
        ValueError,
        ["(N, 2)", "(4, 3)"],
    ),
    "Reverse with starts in float64": (
        lambda: sample(SCORE, 4, init=torch.zeros(4, 2, dtype=torch.float64), sampler=Reverse()),
        TypeError,
        ["init is torch.float64", "dtype="],
    ),
    "Reverse with starts that are NaN": (
        lambda: sample(SCORE, 4, init=torch.full((4, 2), float("nan")), sampler=Reverse()),
        NonFinite,
        ["not finite"],
    ),
    "too much eta": (lambda: Reverse(solver="ddim", eta=1.5), ValueError, ["eta", "[0, 1]", "1.5"]),
    "eta for heun": (lambda: Reverse(eta=0.5), ValueError, ["ddim and dpmpp", "'heun'"]),
    "order three": (lambda: Reverse(solver="dpmpp", order=3), ValueError, ["order", "1 or 2", "got 3"]),
    "an unknown variance": (lambda: Reverse(solver="ddpm", variance="wide"), ValueError, ["'learned'", "'wide'"]),
    "a variance of DDIM": (lambda: Reverse(solver="ddim", variance="large"), ValueError, ['solver="ddpm"', "'ddim'"]),
    "a learned variance of no network": (
        lambda: sample(SCORE, 4, sampler=Reverse(solver="ddpm", variance="learned")),
        TypeError,
        ["learned variance", 'variance="small"'],
    ),
    "an empty clip": (lambda: Reverse(solver="ddim", clip=(1.0, -1.0)), ValueError, ["clip", "least < greatest"]),
    "clip for heun": (lambda: Reverse(clip=(-1.0, 1.0)), ValueError, ["clip=", "heun"]),
    "a ladder that goes up": (lambda: Ladder((1.0,), (2.0,)), ValueError, ["no step goes up", "[2.0]"]),
    "a ladder from zero": (lambda: Ladder((0.0,), (0.0,)), ValueError, ["positive levels", "[0.0]"]),
    "a ladder that ends at inf": (lambda: Ladder((math.inf,), (math.inf,)), ValueError, ["finite ones"]),
    "a ladder of two lengths": (lambda: Ladder((2.0, 1.0), (0.0,)), ValueError, ["2 steps", "2 ends, got 1"]),
    "a ladder of no spread": (lambda: Ladder((1.0,), (0.0,), spread=0.0), ValueError, ["spread", "positive"]),
    "a ladder without a centre": (lambda: Ladder((1.0,), (0.0,), centre=math.nan), ValueError, ["centre", "finite"]),
    "a negative carry": (lambda: Ladder((1.0,), (0.0,), carry=(-1.0,)), ValueError, ["carry", "positive"]),
    "a negative variance": (lambda: Ladder((1.0,), (0.0,), upper=(-1.0,)), ValueError, ["upper", ">= 0"]),
    "a ladder outside the range": (
        lambda: sample(SCORE, 4, sampler=Reverse(sigmas=Ladder((200.0,), (0.0,)))),
        ValueError,
        ["net", "[0.01, 80]", "200"],
    ),
    "pure noise for a score": (
        lambda: sample(SCORE, 4, sampler=Reverse(solver="ddim", sigmas=Ladder((math.inf,), (1.0,), spread=1.0))),
        ValueError,
        ["no estimate at sigma = inf", "finite level"],
    ),
    "pure noise for a product of two": (
        lambda: sample(SCORE**2, 4, sampler=Reverse(solver="ddim", sigmas=Ladder((math.inf,), (1.0,), spread=1.0))),
        ValueError,
        ["add up to 1", "2"],
    ),
    "pure noise without a start": (
        lambda: sample(SCORE, 4, sampler=Reverse(solver="ddim", sigmas=Ladder((math.inf,), (1.0,)))),
        ValueError,
        ["spread=1.0", "init="],
    ),
    "pure noise for heun": (
        lambda: sample(SCORE, 4, sampler=Reverse(sigmas=Ladder((math.inf,), (1.0,), spread=1.0))),
        ValueError,
        ["heun", "finite level"],
    ),
    "Reverse with a checkpoint": (
        lambda: sample(P, 4, sampler=Reverse(), checkpoint="x"),
        ValueError,
        ["no checkpoint"],
    ),
    "a checkpoint without a seed": (
        lambda: sample(P, 4, sampler=SMC(), checkpoint="x"),
        ValueError,
        ["checkpoint=", "seed="],
    ),
    # MCMC and kernels
    "no draws": (lambda: MCMC(draws=0), ValueError, ["draws", ">= 1", "got 0"]),
    "a negative warmup": (lambda: MCMC(warmup=-1), ValueError, ["warmup", "got -1"]),
    "a warmup of 'long'": (lambda: MCMC(warmup="long"), ValueError, ["warmup", "'long'"]),
    "no thinning": (lambda: MCMC(thin=0), ValueError, ["thin", "got 0"]),
    "no adaptation and no step": (lambda: MCMC(HMC(), adapt=False), ValueError, ["adapt=False", "HMC(step_size="]),
    "no adaptation and no kernel": (lambda: MCMC(adapt=False), ValueError, ["adapt=False", "MCMC(NUTS(step_size="]),
    "no time to adapt": (
        lambda: sample(P, chains=2, sampler=MCMC(HMC(), warmup=0)),
        ValueError,
        ["warmup=0", "adapted"],
    ),
    "a negative step": (lambda: HMC(step_size=-0.1), ValueError, ["HMC", "positive finite", "-0.1", "None"]),
    "a step that is NaN": (lambda: MALA(step_size=float("nan")), ValueError, ["MALA", "positive finite", "nan"]),
    "a step that is infinite": (lambda: ULA(step_size=float("inf")), ValueError, ["ULA", "inf"]),
    "a step as a string": (lambda: UHMC(step_size="auto"), ValueError, ["UHMC", "'auto'", "None has it adapted"]),
    "no leapfrog": (lambda: HMC(num_leapfrog=0), ValueError, ["num_leapfrog >= 1", "got 0"]),
    "2.5 leapfrogs": (lambda: UHMC(num_leapfrog=2.5), ValueError, ["num_leapfrog", "2.5"]),
    "tuning without a step": (lambda: HMC().tune(), ValueError, ["no step_size", "HMC(step_size=0.1)"]),
    "tuning with a negative step": (lambda: Tune(torch.tensor(-1.0)), ValueError, ["step sizes are positive", "-1.0"]),
    "a mass of zero": (lambda: Tune(torch.tensor(1.0), torch.zeros(2)), ValueError, ["inverse mass", "positive"]),
    "a start that is no state": (
        lambda: HMC(step_size=0.1).init(ravel(P), torch.zeros(2)),
        ValueError,
        ["(N, D)", "(2,)"],
    ),
    "a start of another width": (
        lambda: HMC(step_size=0.1).init(ravel(P), torch.zeros(4, 3)),
        ValueError,
        ["(4, 3)", "(N, 2)"],
    ),
    "integers as a start": (
        lambda: HMC(step_size=0.1).init(ravel(P), torch.zeros(4, 2, dtype=torch.int64)),
        TypeError,
        ["floating-point", "torch.int64"],
    ),
    "an undefined start": (
        lambda: HMC(step_size=0.1).init(ravel(P), torch.full((4, 2), torch.nan)),
        NonFinite,
        ["4 of 4 starts", "row 0"],
    ),
    "ravel of a function": (lambda: ravel(lambda x: x), TypeError, ["function", "boltzmix.term"]),
    # results
    "no file": (lambda: Draw.load("no-such-file"), FileNotFoundError, ["no draw at"]),
    "one draw for ess": (lambda: ess(torch.zeros(4, 1)), ValueError, ["draws >= 4", "(4, 1)"]),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls_say_what_to_do(case):
    call, error, fragments = CALLS[case]
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error, f"a subclass or another error: {caught.type.__name__}"
    for fragment in fragments:
        assert fragment in str(caught.value), f"{fragment!r} is not in: {caught.value}"


def test_there_are_enough_of_them():
    assert len(CALLS) >= 40


def test_a_condition_for_each_draw_is_given_the_sampler_that_keeps_rows_apart():
    values = torch.tensor([[-1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    draw = sample(P * Clamp(torch.tensor([True, False]), values), 3, seed=0)
    assert draw.info.sampler == "Annealed"
    assert "a condition for each draw" in draw.info.reason
    torch.testing.assert_close(draw.x[:, 0], values[:, 0])
    with pytest.raises(TypeError, match=r"has only a score; integrate it.*log_likelihood"):
        SCORE.log_prob(torch.zeros(1, 2), 1.0)
