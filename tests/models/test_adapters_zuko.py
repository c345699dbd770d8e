"""zuko flows as terms: their own density, exact draws with seeds, conditions in one pass."""

import sys

import pytest
import torch

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.term import evaluate
from boltzmix.models.adapters import term
from boltzmix.models.adapters.zuko import from_zuko

zuko = pytest.importorskip("zuko")

FLOWS = {
    "MAF": lambda context: zuko.flows.MAF(2, context, transforms=2, hidden_features=(16,)),
    "NSF": lambda context: zuko.flows.NSF(2, context, transforms=2, hidden_features=(16,)),
    "NICE": lambda context: zuko.flows.NICE(2, context, transforms=2, hidden_features=(16,)),
    "NAF": lambda context: zuko.flows.NAF(2, context, transforms=1, hidden_features=(16,)),
    "BPF": lambda context: zuko.flows.BPF(2, context, transforms=1, hidden_features=(16,)),
    "GF": lambda context: zuko.flows.GF(2, context, transforms=2),
    "CNF": lambda context: zuko.flows.CNF(2, context, hidden_features=(16,)),
    "GMM": lambda context: zuko.mixtures.GMM(2, context, components=3),
}


def make(name, context=0, seed=0):
    torch.manual_seed(seed)
    return FLOWS[name](context).eval()


def points(n=6, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def wrapped(name, context=0):
    return term(make(name, context), **({"event_shape": (2,)} if name == "GMM" and context else {}))


@pytest.mark.parametrize("name", FLOWS)
def test_energy_is_minus_the_flows_log_density_and_score_its_gradient(name):
    flow, x = make(name), points()
    p = term(flow)
    assert (p.path, p.normalized, p.has_energy, p.event_shape) == ("static", True, True, (2,))
    assert torch.allclose(p.log_prob(x), flow().log_prob(x), atol=1e-5)
    leaf = x.clone().requires_grad_()
    (truth,) = torch.autograd.grad(flow().log_prob(leaf).sum(), leaf)
    assert torch.allclose(p.score(x), truth, atol=1e-4)
    with torch.no_grad():
        energy, score = p.energy_and_score(x)
    assert torch.allclose(score, truth, atol=1e-4)
    assert not energy.requires_grad
    assert torch.equal(p.energy(x, 3.0), p.energy(x))


@pytest.mark.parametrize("name", FLOWS)
def test_contexts_of_one_flow_share_one_pass(name):
    flow, x = make(name, 3), points()
    p = term(flow, event_shape=(2,))
    assert p.conditions == {"context"}
    contexts = [torch.zeros(3), torch.ones(3), torch.tensor([0.5, -1.0, 2.0])]
    members = [p.given(context=c) for c in contexts]
    calls = []
    flow.register_forward_hook(lambda module, args, out: calls.append(args[0].shape))
    with torch.no_grad():
        found = evaluate(members, x, None, energy=True, score=True)
        only = evaluate(members, x, None, energy=True, score=False)
    assert calls == [(3, 1, 3)] * 2
    for member, c in zip(members, contexts, strict=True):
        leaf = x.clone().requires_grad_()
        density = flow(c).log_prob(leaf)
        (truth,) = torch.autograd.grad(density.sum(), leaf)
        energy, score = found[member.key()]
        atol = 2e-3 if name == "CNF" else 1e-4  # an adaptive integrator: steps depend on the rows of the batch
        assert torch.allclose(energy, -density, atol=atol)
        assert torch.allclose(only[member.key()][0], -density, atol=atol)
        assert torch.allclose(score, truth, atol=10 * atol)
        assert torch.allclose(member.score(x), truth, atol=1e-4)
    assert members[1].key() == p.given(context=torch.ones(1, 3)).key() != members[0].key()
    assert not members[1].conditions


@pytest.mark.parametrize("name", [n for n in FLOWS if n not in ("GMM", "GF")])
def test_draws_are_the_flows_and_follow_the_generator(name):
    flow = make(name)
    p = term(flow)
    assert p.samplable
    state = torch.get_rng_state()
    first = p.sample(64, torch.Generator().manual_seed(3))
    assert torch.equal(first, p.sample(64, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, p.sample(64, torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert first.shape == (64, 2)
    assert not first.requires_grad
    with torch.no_grad():
        back = flow().transform(first)  # the base noise that the generator gave
    base = flow().base
    while hasattr(base, "base_dist"):
        base = base.base_dist
    generator = torch.Generator().manual_seed(3)
    if isinstance(base, torch.distributions.Normal):
        noise = torch.randn(64, 2, generator=generator)
    else:
        noise = base.low + (base.high - base.low) * torch.rand(64, 2, generator=generator)
    assert torch.allclose(back, noise, atol=2e-3)


def test_draws_outside_the_bracket_of_a_numerical_inverse_are_refused():
    """zuko returns the bracket's end, ±10, for them; this flow is wide."""
    flow, generator = make("GF"), torch.Generator().manual_seed(3)
    with torch.no_grad():
        ends = flow().rsample((64,)).abs().amax(1) > 9.999
    assert ends.any()
    with pytest.raises(ValueError, match=r"misses \d+ of 64 draws, up to \|x\| = 10"):
        term(flow).sample(64, generator)


def test_draws_of_a_conditional_flow_have_its_density():
    """Mean of the energy over draws is the entropy by quadrature; false-positive rate 1e-4."""
    p = wrapped("NSF", 3).given(context=torch.tensor([1.0, -2.0, 0.5]))
    with torch.no_grad():
        energy = p.energy(p.sample(20_000, torch.Generator().manual_seed(0))).double()
        axis = torch.linspace(-7, 7, 701)
        grid = torch.cartesian_prod(axis, axis)
        log_p = p.log_prob(grid).double()
        mass = log_p.exp() * 0.02**2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    entropy = float(-(mass * log_p).sum())
    z = (float(energy.mean()) - entropy) / float(energy.std() / len(energy) ** 0.5)
    assert abs(z) < 3.9


def test_a_uniform_base():
    flow = zuko.lazy.Flow(
        [zuko.lazy.UnconditionalTransform(zuko.transforms.SigmoidTransform)],
        zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.zeros(2), torch.ones(2), buffer=True),
    )
    p = term(flow)
    draws = p.sample(20_000, torch.Generator().manual_seed(0))  # a logistic distribution: variance π²/3
    assert torch.allclose(draws.var(0), torch.tensor(3.2899), atol=0.15)
    x = points()
    truth = (torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)).sum(1)
    assert torch.allclose(p.log_prob(x), truth, atol=1e-5)


def test_conditioned_distributions():
    flow, x, c = make("MAF", 3), points(), torch.ones(3)
    p, q = term(flow(c)), term(flow).given(context=c)
    assert torch.allclose(p.log_prob(x), q.log_prob(x), atol=1e-6)
    assert torch.allclose(p.score(x), q.score(x), atol=1e-5)
    assert torch.allclose(p.score(x), q.score(x), atol=1e-5)  # the graph of the first call is not used up
    draws = [t.sample(5, torch.Generator().manual_seed(0)) for t in (p, q)]
    assert torch.allclose(*draws, atol=1e-5)
    box = term(zuko.distributions.BoxUniform(torch.zeros(2), torch.ones(2)))
    assert box.energy(torch.tensor([[0.5, 0.5], [2.0, 0.5]])).tolist() == [0.0, torch.inf]
    assert not box.samplable


def test_parameters_learn_and_the_flow_stays_as_it_is():
    flow, x = make("MAF", 3), points()
    flow.train()
    p = term(flow).given(context=torch.zeros(3))
    p.energy(x).mean().backward()
    assert all(a.grad is not None for a in flow.parameters() if a.numel())
    assert p.score(x).requires_grad
    flow.zero_grad()
    both = evaluate([p, term(flow).given(context=torch.ones(3))], x, None, energy=True, score=True)
    sum((e.sum() + s.square().sum()) for e, s in both.values()).backward()  # through the score: second derivatives
    assert sum(float(a.grad.abs().sum()) for a in flow.parameters() if a.grad is not None) > 0
    flow.requires_grad_(False)
    assert not p.score(x).requires_grad
    assert flow.training
    leaf = x.clone().requires_grad_()
    found = evaluate([p, term(flow).given(context=torch.ones(3))], leaf, None, energy=True, score=True)
    (whole,) = torch.autograd.grad(sum(e.sum() for e, _ in found.values()), leaf, retain_graph=True)
    assert torch.allclose(-whole, sum(s for _, s in found.values()), atol=1e-5)


WRONG = {
    "no context": (lambda: term(make("MAF", 3)).energy(points()), TypeError, r"p\.given\(context=tensor\)"),
    "no context, sample": (lambda: term(make("MAF", 3)).sample(3), TypeError, "sampled exactly"),
    "context too long": (lambda: term(make("MAF", 3)).given(context=torch.zeros(4)), ValueError, r"shape \(4,\)"),
    "context per row": (lambda: term(make("MAF", 3)).given(context=torch.zeros(5, 3)), ValueError, "one term per"),
    "context a list": (lambda: term(make("MAF", 3)).given(context=[0.0] * 3), TypeError, "got list"),
    "context of ints": (lambda: term(make("MAF", 3)).given(context=torch.arange(3)), TypeError, "int64"),
    "context nan": (lambda: term(make("MAF", 3)).given(context=torch.full((3,), torch.nan)), ValueError, "finite"),
    "context double": (
        lambda: term(make("MAF", 3)).given(context=torch.zeros(3, dtype=torch.float64)),
        TypeError,
        "float64",
    ),
    "context unwanted": (lambda: term(make("MAF")).given(context=torch.zeros(3)), TypeError, "takes none"),
    "context at once": (lambda: term(make("MAF"), context=torch.zeros(3)), ValueError, "cannot be evaluated"),
    "event shape": (lambda: term(make("MAF"), event_shape=(3,)), ValueError, r"has event shape \(2,\)"),
    "event shape, mixture": (lambda: term(make("GMM", 3)), ValueError, "pass event_shape="),
    "event shape, wrong with a context": (
        lambda: term(make("GMM", 3), event_shape=(3,)).given(context=torch.zeros(3)),
        ValueError,
        "event shape",
    ),
    "x of another shape": (lambda: term(make("MAF")).energy(torch.zeros(2, 3)), ValueError, r"\(N, 2\)"),
    "x double": (lambda: term(make("MAF")).energy(points().double()), TypeError, "float32 parameters"),
    "x of ints": (lambda: term(make("MAF")).energy(torch.zeros(2, 2, dtype=torch.long)), TypeError, "floating"),
    "schedule": (lambda: term(make("MAF"), schedule=object()), TypeError, "no noise levels"),
    "kind": (lambda: term(make("MAF"), kind="log_prob"), TypeError, "kind="),
    "transform": (lambda: term(zuko.transforms.SoftclipTransform()), TypeError, "lazy flow"),
    "batch of distributions": (
        lambda: term(zuko.distributions.DiagNormal(torch.zeros(4, 2), torch.ones(4, 2))),
        ValueError,
        "batch shape",
    ),
    "random estimate": (lambda: term(zuko.flows.CNF(2, exact=False)), ValueError, "exact = True"),
    "unknown hint": (lambda: term(make("MAF"), prediction="epsilon"), TypeError, "prediction"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_missing_extra_names_the_installation(monkeypatch):
    flow = make("MAF")
    monkeypatch.setitem(sys.modules, "zuko.lazy", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[flows\]"'):
        from_zuko(flow)
