"""Causal language models as terms: sums over all rows, transformers' own loss, prompts in one forward, exact draws."""

import copy
import sys

import pytest
import torch

from boltzmix.compose import SMC, Gaussian, sample
from boltzmix.compose.errors import MissingEnergy, MissingExtra
from boltzmix.compose.term import evaluate
from boltzmix.models import fit
from boltzmix.models.adapters import term
from boltzmix.models.adapters.transformers import from_folder
from tests.contracts import Contract, contract_cases

transformers = pytest.importorskip("transformers")

V, L = 5, 4
ROWS = torch.cartesian_prod(*[torch.arange(V)] * L)  # every row there is


def gpt(vocabulary=V, eos=0, dropout=0.0, positions=24, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=positions, bos_token_id=0, eos_token_id=eos,
        initializer_range=0.4, attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(vocabulary=V):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=24, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        initializer_range=0.4,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Letters:
    """A tokenizer of the interface that is used, over ``.abcd…``: ``.`` ends a text and pads it."""

    bos_token_id = eos_token_id = pad_token_id = 0
    padding_side = "left"
    letters = ".abcdefgh"

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [self.letters.index(letter) for letter in text]}

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)


MODELS = {"gpt2": gpt, "llama": llama}
READINGS = {
    "length": {"length": L},
    "right": {"max_length": L, "eos_id": 0, "pad_id": 0},
    "left": {"max_length": L, "eos_id": 0, "pad_id": 0, "padding_side": "left"},
    "right, own pad": {"max_length": L, "eos_id": 1, "pad_id": 2},
    "left, own pad": {"max_length": L, "eos_id": 1, "pad_id": 2, "padding_side": "left"},
}


@pytest.mark.parametrize(("check", "contract"), contract_cases({"gpt2": Contract(lambda: term(gpt(), length=L))}))
def test_contract(check, contract):
    check(contract)


# ------------------------------------------------------------------------------------------------------------ densities


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("model", MODELS)
def test_probabilities_of_all_rows_sum_to_one(model, reading):
    p = term(MODELS[model](), **READINGS[reading])
    assert (p.normalized, p.path, p.has_energy, p.has_score) == (True, "static", True, False)
    assert (p.event_shape, p.variables.support) == ((L,), f"integers({V})")
    with torch.no_grad():
        for view in (p, p.given(prompt_ids=[3, 4, 2])):
            assert float((-view.energy(ROWS).double()).exp().sum()) == pytest.approx(1.0, abs=2e-6)


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_the_chain_rule(model):
    """Against one forward per token of one row, the slow way round."""
    network = MODELS[model]().eval()
    p = term(network, length=L).given(prompt_ids=[2, 3])
    row = torch.tensor([4, 0, 1, 4])
    total, known = 0.0, [0, 2, 3]
    with torch.no_grad():
        for token in row.tolist():
            total += float(network(input_ids=torch.tensor([known])).logits[0, -1].log_softmax(0)[token])
            known.append(token)
        assert float(p.log_prob(row[None])) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_energy_is_the_loss_of_transformers(side):
    """−log p = (number of tokens) × loss, with labels of −100 at BOS and pads; pads on either side, to 1e-5."""
    network = gpt().eval()
    p = term(network, max_length=L, padding_side=side)
    texts = [[1, 2, 3, 4], [3, 3, 0], [2, 0], [0]]
    for text in texts:
        pads = [0] * (L - len(text))
        row = torch.tensor([pads + text if side == "left" else text + pads])
        ids, labels = torch.tensor([[0, *text, *pads]]), torch.tensor([[-100, *text, *[-100] * len(pads)]])
        mask = torch.tensor([[1] * (1 + len(text)) + [0] * len(pads)])
        with torch.no_grad():
            loss = network(input_ids=ids, attention_mask=mask, labels=labels).loss
            assert float(p.energy(row)) == pytest.approx(len(text) * float(loss), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_likelihood_of_unfinished_texts_is_the_loss_too(model, side):
    """``log_likelihood`` of padded batches: the sum that transformers' loss averages, whatever token pads."""
    network = MODELS[model]().eval()
    p = term(network, length=L)
    lengths = [4, 2, 1]
    rows = torch.randint(1, V, (3, L), generator=torch.Generator().manual_seed(0))
    place = torch.arange(L)
    kept = torch.stack([place >= L - m if side == "left" else place < m for m in lengths])
    found = p.log_likelihood(rows.masked_fill(~kept, 2), kept.long())
    for value, row, mask in zip(found, rows, kept, strict=True):
        ids = torch.cat([torch.tensor([0]), row[mask]])[None]
        loss = network(input_ids=ids, labels=ids).loss
        assert float(value.detach()) == pytest.approx(-float(loss.detach()) * int(mask.sum()), abs=1e-5)


def test_without_a_prefix_the_first_token_is_the_condition():
    network = gpt().eval()
    p = term(network, length=L, bos_id=None)
    ids = ROWS[[7, 300]]
    with torch.no_grad():
        loss = torch.stack([network(input_ids=r[None], labels=r[None]).loss for r in ids])
        assert torch.allclose(p.log_likelihood(ids), -(L - 1) * loss, atol=1e-5)
        with pytest.raises(TypeError, match="bos_id="):
            p.energy(ids)
        assert float((-p.given(prompt_ids=[1]).energy(ROWS)).exp().sum()) == pytest.approx(1.0, abs=2e-6)


IMPOSSIBLE = {
    "right": [[1, 0, 2, 0], [0, 1, 0, 0]],
    "left": [[1, 0, 0, 0], [0, 1, 2, 3], [0, 1, 0, 0]],
    "right, own pad": [[3, 2, 2, 2], [3, 1, 1, 2], [2, 3, 1, 2], [3, 1, 2, 3], [2, 2, 2, 2]],
    "left, own pad": [[2, 3, 3, 3], [2, 3, 1, 2], [3, 1, 2, 2], [2, 2, 2, 2], [2, 1, 3, 1]],
}


@pytest.mark.parametrize("reading", IMPOSSIBLE)
def test_rows_that_are_no_text_have_zero_density(reading):
    p = term(gpt(), **READINGS[reading])
    assert torch.isinf(p.energy(torch.tensor(IMPOSSIBLE[reading]))).all()
    texts = p.sample(200, torch.Generator().manual_seed(0))
    assert torch.isfinite(p.energy(texts)).all()


def test_the_side_of_pads_changes_no_probability():
    network = gpt()
    right, left = (term(network, max_length=L, eos_id=1, pad_id=2, padding_side=side) for side in ("right", "left"))
    pairs = [([3, 4, 1, 2], [2, 3, 4, 1]), ([1, 2, 2, 2], [2, 2, 2, 1]), ([3, 4, 3, 0], [3, 4, 3, 0])]
    a, b = (torch.tensor(rows) for rows in zip(*pairs, strict=True))
    assert torch.allclose(right.energy(a), left.energy(b), atol=1e-6)


def test_dropout_is_off_and_the_mode_stays():
    network = gpt(dropout=0.5).train()
    p = term(network, length=L)
    assert torch.equal(p.energy(ROWS[:9]), p.energy(ROWS[:9]))
    assert torch.equal(p.energy(ROWS[:9]), term(copy.deepcopy(network).eval(), length=L).energy(ROWS[:9]))
    p.sample(3)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Weights in half precision, log-probabilities in float32: rows still sum to one far below the dtype's rounding."""
    p, whole = term(gpt().to(dtype), length=L), term(gpt(), length=L)
    with torch.no_grad():
        energy = p.energy(ROWS)
        assert energy.dtype == torch.float32
        assert float((-energy.double()).exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert float((energy - whole.energy(ROWS)).abs().max()) < 0.4
    assert p.sample(3).dtype == torch.long


# -------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("model", MODELS)
def test_guidance_over_prompts_of_different_lengths_is_one_forward(model):
    """p (p(·|a)/p)² (p(·|b)/p)^−½ over all rows, renormalised by enumeration."""
    network = MODELS[model]()
    p = term(network, length=L)
    a, b = p.given(prompt_ids=[3]), p.given(prompt_ids=torch.tensor([1, 4, 2]))
    guided = p * (a / p) ** 2.0 * (b / p) ** -0.5
    calls = []
    handle = network.register_forward_hook(lambda module, args, out: calls.append(out.logits.shape[0]))
    with torch.no_grad():
        energy = guided.energy(ROWS)
        assert calls == [3 * len(ROWS)]
        handle.remove()
        want = -0.5 * p.energy(ROWS) + 2 * a.energy(ROWS) - 0.5 * b.energy(ROWS)
    assert torch.allclose(energy, want, atol=1e-4)
    assert (guided.has_energy, guided.has_score, guided.normalized) == (True, False, False)


def test_equal_prompts_merge():
    p = term(gpt(), length=L)
    assert (p.given(prompt_ids=[1, 2]) / p.given(prompt_ids=torch.tensor([1, 2]))).pairs() == []
    found = evaluate([p, p.given(prompt_ids=[1])], ROWS[:3], None, energy=True, score=False)
    assert len(found) == 2
    assert (p.on("text") * Gaussian(torch.zeros(2), 1.0).on("image")).has_energy


def test_temperature_of_rows_is_not_temperature_of_tokens():
    """p^(1/T) renormalised over rows differs from the product of tempered steps: another distribution."""
    network = gpt().eval()
    p, cold = term(network, length=L), 0.5
    with torch.no_grad():
        rows = (-(p ** (1 / cold)).energy(ROWS)).softmax(0)
        logits = network(input_ids=torch.cat([torch.zeros(len(ROWS), 1, dtype=torch.long), ROWS[:, :-1]], 1)).logits
        steps = (logits / cold).log_softmax(2).gather(2, ROWS[..., None])[..., 0].sum(1).exp()
    assert float(steps.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float((rows - steps).abs().sum()) > 0.02


# ---------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("model", MODELS)
def test_draws_have_their_probabilities(model, reading):
    """20,000 draws against enumeration: χ² over rows expected 5 times or more, |z| < 5; impossible rows never."""
    p = term(MODELS[model](), **READINGS[reading]).given(prompt_ids=[4, 3])
    x = p.sample(20_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = 20_000 * (-p.energy(ROWS).double()).exp()
    found = torch.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1), minlength=V**L)
    assert not found[want == 0].any()
    often = want >= 5
    freedom = int(often.sum())
    rest = float(want[~often].sum())
    chi = float(((found - want)[often] ** 2 / want[often]).sum()) + (float(found[~often].sum()) - rest) ** 2 / rest
    assert abs(chi - freedom) / (2 * freedom) ** 0.5 < 5


@pytest.mark.parametrize("model", MODELS)
def test_draws_follow_the_generator_and_the_cache_changes_nothing(model, monkeypatch):
    network = MODELS[model]()
    p = term(network, length=L).given(prompt_ids=[2, 1])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = p.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(first, p.sample(50, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, p.sample(50, torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), state)
    fed = []
    original = type(network).forward

    def without(self, input_ids=None, past_key_values=None, **options):
        fed.append(input_ids.shape[1])
        out = original(self, input_ids=input_ids, **options)
        out.past_key_values = None
        return out

    monkeypatch.setattr(type(network), "forward", without)
    assert torch.equal(first, p.sample(50, torch.Generator().manual_seed(3)))
    assert fed == [3, 4, 5, 6]


def test_sampling_stops_when_every_text_has_ended():
    network = gpt()
    with torch.no_grad():
        network.lm_head.weight = torch.nn.Parameter(torch.zeros_like(network.lm_head.weight))
    calls = []
    network.register_forward_hook(lambda module, args, out: calls.append(1))
    p = term(network, max_length=20, eos_id=1, pad_id=2)
    calls.clear()
    x = p.sample(1, torch.Generator().manual_seed(0))
    assert len(calls) == int((x != 2).sum()) < 20


# ---------------------------------------------------------------------------------------------------- text and training


def test_texts():
    p = term(gpt(9), tokenizer=Letters(), max_length=L)
    x = p.encode(["abcd", "ab", ""])
    assert x.tolist() == [[1, 2, 3, 4], [0, 1, 2, 0], [0, 0, 0, 0]]  # on the tokenizer's side
    assert p.decode(x) == ["abcd", "ab", ""]
    assert torch.isfinite(p.energy(x)).all()
    assert p.given(prompt="ca").key() == p.given(prompt_ids=[3, 1]).key()
    fixed = term(gpt(9), tokenizer=Letters(), length=2)
    assert fixed.encode("ab").tolist() == [[1, 2]]
    assert fixed.decode(torch.tensor([[1, 0]])) == ["a."]
    for text in ("abcde", "aaaaaa"):
        with pytest.raises(ValueError, match="at most 4 tokens"):
            p.encode([text])
    with pytest.raises(ValueError, match="takes 2 tokens"):
        fixed.encode(["a"])


def test_fine_tuning_raises_the_probability_of_the_data():
    p = term(gpt(), max_length=L)
    rows = torch.tensor([[1, 2, 0, 0], [3, 3, 3, 0]])
    before = float(p.energy(rows).mean().detach())
    fit(p, rows, steps=30, batch_size=4, lr=1e-2, ema=0.5, progress=False)
    assert float(p.energy(rows).mean().detach()) < 0.5 * before
    assert float((-p.energy(ROWS).detach()).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="no text of this term"):
        p.loss(torch.tensor([[1, 0, 1, 0]]), torch.Generator())


def test_no_graph_unless_a_parameter_needs_one():
    p = term(gpt(), length=L)
    assert p.energy(ROWS[:2]).requires_grad
    p.requires_grad_(False)
    assert not p.energy(ROWS[:2]).requires_grad


def test_a_local_folder(tmp_path):
    gpt().save_pretrained(tmp_path)
    p = from_folder(tmp_path, length=L)
    with torch.no_grad():
        assert torch.allclose(p.energy(ROWS), term(gpt(), length=L).energy(ROWS))
    assert from_folder(tmp_path, dtype=torch.bfloat16, length=L).model.dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_folder(tmp_path / "nothing", length=L)


def test_a_missing_extra_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r'pip install "boltzmix\[transformers\]"'):
        from_folder("anywhere", length=L)


def bert(**options):
    size = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.BertConfig(**size, intermediate_size=8, max_position_embeddings=8, **options)


class Sees(torch.nn.Module):
    """Claims to be a language model and looks ahead."""

    config = transformers.GPT2Config(vocab_size=V)
    device = torch.device("cpu")

    def generate(self):
        """Nothing."""

    def forward(self, input_ids, **_):
        return transformers.modeling_outputs.CausalLMOutput(
            logits=input_ids.float().mean(1)[:, None, None] * torch.arange(V) + torch.zeros(*input_ids.shape, V)
        )


ID = torch.tensor([[1, 2, 3, 4]])
WRONG = {
    "no length": (lambda: term(gpt()), ValueError, "length=L"),
    "two lengths": (lambda: term(gpt(), length=3, max_length=3), ValueError, "length=L"),
    "length 0": (lambda: term(gpt(), length=0), ValueError, "positive ints"),
    "length a float": (lambda: term(gpt(), max_length=3.0), ValueError, "positive ints"),
    "too long": (lambda: term(gpt(), length=25), ValueError, "at most 24 tokens and needs 25"),
    "prompt too long": (lambda: term(gpt(), length=20).given(prompt_ids=[1] * 5), ValueError, "needs 25"),
    "no end": (lambda: term(gpt(eos=7), max_length=3), ValueError, "eos_id="),
    "end of fixed rows": (lambda: term(gpt(), length=3, eos_id=1), ValueError, "max_length="),
    "special token outside": (lambda: term(gpt(), max_length=3, eos_id=9), ValueError, r"\[0, 5\)"),
    "special token a string": (lambda: term(gpt(), max_length=3, pad_id="<pad>"), TypeError, "a token id"),
    "several ends": (lambda: term(gpt(eos=[0, 1]), max_length=3), ValueError, "several eos tokens"),
    "side": (lambda: term(gpt(), max_length=3, padding_side="both"), ValueError, "padding_side"),
    "ids outside": (lambda: term(gpt(), length=L).energy(ID + 3), ValueError, "another tokenizer"),
    "ids negative": (lambda: term(gpt(), length=L).energy(ID - 2), ValueError, "another tokenizer"),
    "ids float": (lambda: term(gpt(), length=L).energy(ID.float()), TypeError, "integer"),
    "ids of another length": (lambda: term(gpt(), length=3).energy(ID), ValueError, r"\(N, 3\)"),
    "ids elsewhere": (lambda: term(gpt(), length=L).energy(ID.to("meta")), TypeError, "move one of them"),
    "score": (lambda: term(gpt(), length=L).score(ID), MissingEnergy, "over integers"),
    "gradient kernels": (lambda: sample(term(gpt(), length=L), 5, sampler=SMC(), seed=0), TypeError, "discrete"),
    "prompt without tokenizer": (lambda: term(gpt(), length=L).given(prompt="a"), TypeError, "prompt_ids="),
    "empty prompt": (lambda: term(gpt(9), tokenizer=Letters(), length=L).given(prompt=""), ValueError, "no tokens"),
    "empty ids": (lambda: term(gpt(), length=L).given(prompt_ids=[]), ValueError, "one or more"),
    "prompt ids outside": (lambda: term(gpt(), length=L).given(prompt_ids=[5]), ValueError, r"\[0, 5\)"),
    "prompt ids float": (lambda: term(gpt(), length=L).given(prompt_ids=[1.0]), TypeError, "a row of ints"),
    "prompt per row": (lambda: term(gpt(), length=L).given(prompt_ids=ID), TypeError, "one term per prompt"),
    "both prompts": (lambda: term(gpt(), length=L).given(prompt="a", prompt_ids=[1]), TypeError, "not both"),
    "two prompts": (
        lambda: term(gpt(), length=L).given(prompt_ids=[1]).given(prompt_ids=[2]),
        TypeError,
        "it takes none",
    ),
    "decode": (lambda: term(gpt(), length=L).decode(ID), TypeError, "tokenizer="),
    "no bos": (lambda: term(gpt(), length=L, bos_id=None).sample(2), TypeError, "bos_id="),
    "schedule": (lambda: term(gpt(), length=L, schedule=object()), TypeError, "no noise levels"),
    "kind": (lambda: term(gpt(), length=L, kind="log_prob"), TypeError, "kind="),
    "event shape": (lambda: term(gpt(), event_shape=(4,)), TypeError, "length=L or max_length=L"),
    "unknown hint": (lambda: term(gpt(), length=L, temperature=0.7), TypeError, "temperature"),
    "no head": (lambda: term(gpt().transformer, length=L), TypeError, "predicts the next token"),
    "masked": (lambda: term(transformers.BertForMaskedLM(bert()), length=L), TypeError, "predicts the next token"),
    "looks ahead": (lambda: from_model(Sees()), TypeError, "is not causal"),
    "encoder-decoder": (
        lambda: term(
            transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
            ),
            length=L,
        ),
        TypeError,
        "encoder-decoder",
    ),
    "mask with holes": (
        lambda: term(gpt(), length=L).log_likelihood(ID, torch.tensor([[1, 0, 1, 1]])),
        ValueError,
        "not inside",
    ),
    "mask of another shape": (
        lambda: term(gpt(), length=L).log_likelihood(ID, torch.ones(1, 3)),
        ValueError,
        "the shape of ids",
    ),
}


def from_model(model):
    from boltzmix.models.adapters.transformers import from_transformers

    return from_transformers(model, length=L)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
