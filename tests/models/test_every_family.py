"""What every trained family keeps, whichever it is: one row per family, built from plain JSON as a user would.

A new family joins by a row of ``FAMILIES``; a public family without a row fails.
"""

import copy
import json
import math
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch

from boltzmix.compose import guidance
from boltzmix.compose.errors import MissingEnergy, NonFinite
from boltzmix.compose.term import Term, evaluate
from boltzmix.models import fit, load, save
from boltzmix.models.load import build, classes

pytest.importorskip("zuko")
pytest.importorskip("scipy")

SHAPE, CLASSES, N, LEVELS = (1, 4, 4), 3, 6, 5
IMAGE = list(SHAPE)


def net(kind, **arguments):
    return {"class": kind, "arguments": {**arguments, "num_classes": CLASSES}}


def spec(family, network=None, **arguments):
    found = {"class": family, "arguments": {"event_shape": IMAGE, "num_classes": CLASSES, **arguments}}
    return found if network is None else {**found, "net": network}


def energy_model(**arguments):
    return spec("EnergyModel", net("EnergyConv", channels=1, hidden=[4, 8], size=4, width=8), **arguments)


@dataclass(frozen=True)
class Family:
    """One row.

    Args:
        spec: what ``build`` takes, class-conditional where the family can be.
        levels: values of a discrete family's variables; 0 for real numbers.
        conditional: whether it takes ``label=``.
        complete: whether it has a density without a label.
        latents: whether its states are ``{"x": …, "z": …}``.
        targets: whether it is trained on ``(x, number)`` instead of ``(x, label)``.
    """

    spec: dict
    levels: int = 0
    conditional: bool = True
    complete: bool = True
    latents: bool = False
    targets: bool = False


UNET = net("UNet", channels=1, hidden=[4, 8], attention=False)
DIT = net("DiT", channels=1, size=4, patch=2, width=8, depth=1, heads=2)
VAE = {"std": 0.3, "noise": "diagonal"}
FAMILIES = {
    "diffusion": Family(spec("Diffusion", UNET, sigma_range=[0.01, 20.0])),
    "diffusion-v": Family(spec("Diffusion", UNET, parameterization="v", schedule="cosine")),
    "dit": Family(spec("Diffusion", DIT)),
    "energy-diffusion": Family(spec("EnergyDiffusion", UNET, level_weight=0.1)),
    "flow-matching": Family(spec("FlowMatching", UNET, t_range=[0.01, 0.98])),
    "flow-matching-ot": Family(spec("FlowMatching", DIT, path="ot", method="heun", steps=1)),
    "ncsn": Family(spec("NCSN", UNET, levels=4, sigma_range=[0.1, 2.0])),
    "ode-density": Family(
        {
            "class": "ODEDensity",
            "arguments": {
                "term": spec("Diffusion", DIT, sigma_range=[0.1, 10.0]),
                "method": "heun",
                "steps": 2,
                "trace": "hutchinson",
                "probes": 1,
            },
        }
    ),
    "flow": Family(spec("Flow", kind="spline", transforms=1, hidden=[8], bins=4)),
    "glow": Family(spec("Glow", levels=2, steps=1, hidden=8, bounds=[-1, 1])),
    "continuous-flow": Family(spec("ContinuousFlow", net("MLP", dim=16, hidden=8, depth=1), flatten=True, steps=2)),
    "vae": Family(
        spec(
            "VAE",
            latent_shape=[3],
            **VAE,
            encoder=net("Dense", inputs=IMAGE, outputs=6, hidden=8),
            decoder=net("Dense", inputs=3, outputs=IMAGE, hidden=8),
        ),
        latents=True,
    ),
    "hierarchical-vae": Family(
        spec(
            "HierarchicalVAE",
            latents=[3, 2],
            **VAE,
            encoder=net("Dense", inputs=IMAGE, outputs=5, hidden=8),
            top=net("Dense", inputs=5, outputs=4, hidden=8),
            bottom=net("Dense", inputs=7, outputs=6, hidden=8),
            middle=net("Dense", inputs=2, outputs=6, hidden=8),
            decoder=net("Dense", inputs=3, outputs=IMAGE, hidden=8),
        ),
        latents=True,
    ),
    "pixelcnn": Family(
        spec(
            "Autoregressive",
            net("PixelCNN", channels=1, outputs=6, levels=LEVELS, hidden=6, layers=1),
            levels=LEVELS,
            head="logistic",
        ),
        levels=LEVELS,
    ),
    "transformer": Family(
        spec(
            "Autoregressive",
            net("CausalTransformer", length=16, outputs=LEVELS, levels=LEVELS, hidden=8, depth=1, heads=2),
            levels=LEVELS,
        ),
        levels=LEVELS,
    ),
    "wavenet": Family(
        spec(
            "Autoregressive",
            net("WaveNet", outputs=LEVELS, levels=LEVELS, hidden=6, dilations=[1, 2]),
            levels=LEVELS,
        ),
        levels=LEVELS,
    ),
    "pixelcnn-reals": Family(
        spec(
            "Autoregressive",
            net("PixelCNN", channels=1, outputs=6, hidden=6, layers=1),
            continuous=True,
            interval=[-1, 1],
        )
    ),
    "energy-model": Family(
        energy_model(objective={"class": "ContrastiveDivergence", "arguments": {"capacity": 32, "steps": 2}})
    ),
    "energy-model-nce": Family(
        energy_model(
            objective="nce",
            base={"class": "GaussianBase", "arguments": {"event_shape": IMAGE, "num_classes": CLASSES}},
        )
    ),
    "energy-model-sliced": Family(energy_model(objective="score")),
    "classifier": Family(spec("Classifier", hidden=[4, 8]), complete=False),
    "reward": Family(
        {
            "class": "Reward",
            "arguments": {"event_shape": IMAGE, "beta": 0.5},
            "net": {"class": "Dense", "arguments": {"inputs": IMAGE, "outputs": 1, "hidden": 8}},
        },
        conditional=False,
        targets=True,
    ),
    "returns": Family(
        {"class": "Returns", "arguments": {"event_shape": IMAGE, "beta": 0.5, "hidden": 8}},
        conditional=False,
        targets=True,
    ),
}
every = pytest.mark.parametrize("name", FAMILIES)
conditional = pytest.mark.parametrize("name", [k for k, f in FAMILIES.items() if f.conditional])


def made(name, seed=0):
    """An untrained model of the family, by way of JSON text."""
    torch.manual_seed(seed)
    return build(json.loads(json.dumps(FAMILIES[name].spec)))


def excited(name, seed=0):
    """With every parameter moved at random: many networks start at zero, where nothing could differ."""
    model = made(name, seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def rows(name, n=N, dtype=torch.float32):
    """Data of the family: real numbers in (−1, 1) or levels."""
    generator = torch.Generator().manual_seed(4)
    if FAMILIES[name].levels:
        return torch.randint(FAMILIES[name].levels, (n, *SHAPE), generator=generator)
    return (torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64) * 1.8 - 0.9).to(dtype)


def batch(name, n=N):
    label = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(5))
    return rows(name, n), label.float() if FAMILIES[name].targets else label


def states(name, model, n=N, dtype=torch.float32):
    x = rows(name, n, dtype)
    if not FAMILIES[name].latents:
        return x
    generator = torch.Generator().manual_seed(6)
    return {
        key: x if key == "x" else torch.randn(n, *v.shape, generator=generator, dtype=torch.float64).to(dtype)
        for key, v in model.variables.items()
    }


def answers(name, model, n=N, dtype=torch.float32):
    """Everything that a term says of its states: energies, scores, draws."""
    view, x = (model if FAMILIES[name].complete else model.given(label=1)), states(name, model, n, dtype)
    found = {}
    with torch.no_grad():
        if view.has_energy:
            found["energy"] = view.energy(x)
        if view.has_score:
            score = view.score(x)
            found |= {f"score {k}": v for k, v in score.items()} if isinstance(score, dict) else {"score": score}
        if view.samplable:
            draws = view.sample(n, torch.Generator().manual_seed(7))
            found |= {f"draws {k}": v for k, v in draws.items()} if isinstance(draws, dict) else {"draws": draws}
    return found


def same(first, second):
    assert first.keys() == second.keys()
    assert first
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_every_public_family_has_its_row():
    used = {f.spec["class"] for f in FAMILIES.values()} | {"GaussianBase"}  # a part of energy models, and in their rows
    # of states and actions, not of pictures: their tests are their own
    used |= {"Dynamics", "InverseDynamics", "TransitionEnergy", "TrajectoryDiffusion"}
    assert {k for k, kind in classes().items() if issubclass(kind, Term)} == used


# ----------------------------------------------------------------------------------------------------- what a term says


@every
def test_answers_have_the_shape_of_their_states(name):
    model = excited(name)
    for n in (1, N):
        for key, value in answers(name, model, n).items():
            expected = states(name, model, n)
            part = key.split()[1] if " " in key else None
            shape = (n,) if key == "energy" else (expected if part is None else expected[part]).shape
            assert value.shape == shape, key
            assert bool(torch.isfinite(value).all()), key


@every
def test_rows_do_not_depend_on_their_neighbours(name):
    if name == "ode-density":
        pytest.skip("its probes are a fixed function of the number of rows")
    model = excited(name).double()
    view, x = (model if FAMILIES[name].complete else model.given(label=1)), states(name, model, dtype=torch.float64)
    last = {key: value[-1:] for key, value in x.items()} if isinstance(x, dict) else x[-1:]
    ask = view.energy if view.has_energy else view.score
    with torch.no_grad():
        torch.testing.assert_close(ask(last), ask(x)[-1:])


@pytest.mark.parametrize("name", [k for k, f in FAMILIES.items() if not f.levels and not f.latents])
def test_a_row_that_is_not_finite_spoils_no_other(name):
    model, x = excited(name), rows(name)
    view = model if FAMILIES[name].complete else model.given(label=1)
    ask = view.energy if view.has_energy else view.score
    bad = x.clone()
    bad[2, 0, 0, 0] = math.nan
    with torch.no_grad():
        found, expected = ask(bad), ask(x)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-4)
    assert not bool(torch.isfinite(found[2]).all()), "repaired in silence"


@every
def test_copies_answer_alike_and_are_independent(name):
    model = excited(name)
    before = answers(name, model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(before, answers(name, again))
        with torch.no_grad():
            for p in again.parameters():
                p.add_(1.0)
    same(before, answers(name, model))


@pytest.mark.parametrize("name", [k for k, f in FAMILIES.items() if f.levels])
def test_levels_out_of_range_are_named(name):
    model, x = excited(name), rows(name)
    for bad in (x + 3, x - 3):
        with pytest.raises(ValueError, match=str(LEVELS - 1)):
            model.energy(bad)
        with pytest.raises(ValueError, match=str(LEVELS - 1)):
            model.loss((bad, torch.zeros(N, dtype=torch.long)), torch.Generator().manual_seed(0))


@every
def test_same_seed_same_loss_and_no_other_generator(name):
    """All randomness of a loss comes from the generator that it is given."""
    if name == "ode-density":
        pytest.skip("its term is what trains")
    model = excited(name)
    if hasattr(model, "prepare"):
        model.prepare(batch(name), torch.Generator().manual_seed(0))
    twin, losses, before = copy.deepcopy(model), [], torch.get_rng_state()
    for each in (model, twin):
        losses.append(float(each.loss(batch(name), torch.Generator().manual_seed(8)).detach()))
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]
    assert math.isfinite(losses[0])


@every
def test_float64_is_kept_and_agrees(name):
    model = excited(name)
    single, double = answers(name, model), answers(name, copy.deepcopy(model).double(), dtype=torch.float64)
    for key, value in double.items():
        if not value.is_floating_point():
            continue
        assert value.dtype == torch.float64, key
        if not key.startswith("draws"):  # the same seed gives other random numbers
            torch.testing.assert_close(single[key].double(), value, rtol=2e-3, atol=2e-3)


@every
def test_wrong_states_are_named(name):
    family, model = FAMILIES[name], excited(name)
    view, x = (model if family.complete else model.given(label=0)), states(name, model)
    ask = view.energy if view.has_energy else view.score
    wide = {**x, "x": x["x"][:, :, :3]} if family.latents else x[:, :, :3]
    with pytest.raises((ValueError, TypeError), match="shape"):
        ask(wide)
    other = {k: v.double() for k, v in x.items()} if family.latents else x.double()
    with pytest.raises((TypeError, ValueError), match="float64" if not family.levels else "float|int"):
        ask(other)
    if not view.has_energy:
        with pytest.raises(MissingEnergy):
            view.energy(x)


# ----------------------------------------------------------------------------------------------------------- conditions


@every
@pytest.mark.parametrize("condition", ["prompt", "class_label", "labels"])
def test_unknown_conditions_are_named(name, condition):
    takes = r"it takes \['label'" if FAMILIES[name].conditional else "it takes none"
    with pytest.raises(TypeError, match=rf"unknown condition \['{condition}'\]; {takes}"):
        made(name).given(**{condition: 1})
    with pytest.raises(TypeError, match="at least one condition"):
        made(name).given()


@conditional
def test_wrong_labels_are_named(name):
    model = made(name)
    for label in (CLASSES, -1, torch.tensor([0, CLASSES])):
        with pytest.raises(ValueError, match=r"in \[0, 3\)"):
            model.given(label=label)
    for label in (1.0, "1", True, None, torch.tensor([True])):
        with pytest.raises(TypeError, match="label"):
            model.given(label=label)
    with pytest.raises(ValueError, match="already conditioned on label=1"):
        model.given(label=1).given(label=2)
    view = model.given(label=torch.arange(4) % CLASSES)
    with pytest.raises(ValueError, match="4 labels, one per particle, and got 6"):
        view.energy(states(name, model)) if view.has_energy else view.score(states(name, model))


@pytest.mark.parametrize("name", [k for k, f in FAMILIES.items() if f.conditional and k != "ode-density"])
@pytest.mark.parametrize(
    "label", [torch.full((N,), CLASSES), torch.zeros(N), torch.zeros(N - 1).long()], ids=["range", "reals", "rows"]
)
def test_wrong_labels_of_a_batch_are_named(name, label):
    with pytest.raises((ValueError, TypeError), match="labels are ints"):
        made(name).loss((rows(name), label), torch.Generator().manual_seed(0))


def stripped(part):
    """A description without num_classes."""
    if not isinstance(part, dict):
        return part
    return {key: stripped(value) for key, value in part.items() if key != "num_classes"}


@conditional
def test_models_without_labels_take_none(name):
    if name == "classifier":
        pytest.skip("labels are what a classifier is over")
    torch.manual_seed(0)
    plain = build(stripped(FAMILIES[name].spec))
    with pytest.raises(TypeError, match=r"unknown condition \['label'\]; it takes (none|\['prefix'\])"):
        plain.given(label=1)
    if name != "ode-density":
        with pytest.raises(ValueError, match="the model takes none; build it with num_classes="):
            plain.loss(batch(name), torch.Generator().manual_seed(0))


@conditional
def test_views_share_their_parameters_and_differ(name):
    model = excited(name)
    views = [model.given(label=k) for k in range(CLASSES)]
    for view in views:
        assert [id(p) for p in view.parameters()] == [id(p) for p in model.parameters()]
        assert view.conditions == model.conditions
    assert views[0].key() == model.given(label=0).key()
    assert len({v.key() for v in (model, *views)}) == 1 + CLASSES
    x = states(name, model)
    energies = model.has_energy or not FAMILIES[name].complete
    with torch.no_grad():
        together = evaluate(views, x, None, energy=energies, score=not FAMILIES[name].levels)
        own = [v.energy(x) if energies else v.score(x) for v in views]
    for view, value in zip(views, own, strict=True):
        found = together[view.key()][0 if energies else 1]
        torch.testing.assert_close(found.detach(), value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own[0], own[1])
    mixed = model.given(label=torch.arange(N) % CLASSES)
    with torch.no_grad():
        found = mixed.energy(x) if energies else mixed.score(x)
    if name != "ode-density":  # rows of labels start from the coarse form of the unconditional model
        expected = torch.stack([own[i % CLASSES][i] for i in range(N)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [k for k, f in FAMILIES.items() if f.conditional and f.complete])
def test_guidance_is_between_and_beyond_its_two_terms(name):
    """p (p(·|c) / p)^α: α = 0 is unconditional, 1 conditional, and α = 3 three times as far."""
    model = excited(name).double()
    view, x = model.given(label=1), states(name, model, dtype=torch.float64)

    def value(term):
        with torch.no_grad():
            return term.energy(x) if model.has_energy else term.score(x)

    plain, own = value(model), value(view)
    assert not torch.allclose(plain, own)
    for alpha in (0.0, 1.0, 3.0):
        torch.testing.assert_close(value(guidance(model, view, alpha)), plain + alpha * (own - plain))


# ---------------------------------------------------------------------------------------------------------------- files


@every
def test_state_holds_every_tensor_once(name):
    model = made(name)
    tensors = model.state_dict()
    starts = [t.data_ptr() for t in tensors.values() if t.numel()]
    assert len(starts) == len(set(starts))
    assert {id(p) for p in model.parameters()} <= {id(t) for t in model.state_dict(keep_vars=True).values()}
    if FAMILIES[name].conditional:
        assert model.given(label=1).state_dict().keys() == tensors.keys()


@every
def test_what_is_saved_is_what_is_loaded(name, tmp_path):
    """Bit for bit, into a model that starts from other weights, and the caller's generator stays where it was."""
    model = excited(name)
    save(model, "mine", tmp_path, FAMILIES[name].spec)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = load("mine", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(model)
    assert not again.training
    same(model.state_dict(), again.state_dict())
    same(answers(name, model), answers(name, again))


@every
def test_weights_of_another_family_are_refused(name, tmp_path):
    order = list(FAMILIES)
    other = next(
        k
        for k in order[order.index(name) + 1 :] + order
        if FAMILIES[k].spec["class"] != FAMILIES[name].spec["class"]
        and {key: v.shape for key, v in made(k).state_dict().items()}
        != {key: v.shape for key, v in made(name).state_dict().items()}
    )
    with pytest.raises(ValueError, match="could not read these weights again"):
        save(made(other), "mine", tmp_path, FAMILIES[name].spec)
    described = save(made(other), "mine", tmp_path, FAMILIES[other].spec)
    entry = json.loads(described.read_text(encoding="utf-8"))
    described.write_text(json.dumps({**entry, "model": FAMILIES[name].spec}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine.safetensors does not fit the architecture in mine.json"):
        load("mine", tmp_path)


@every
def test_damaged_weights_are_refused(name, tmp_path):
    """A bit turned at random, and a file cut at random."""
    save(made(name), "mine", tmp_path, FAMILIES[name].spec)
    file = tmp_path / "mine.safetensors"
    content = file.read_bytes()
    at = int(torch.randint(len(content), (), generator=torch.Generator().manual_seed(len(content))))
    for damaged in (content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine.safetensors is damaged"):
            load("mine", tmp_path)


# ------------------------------------------------------------------------------------------------------------- training

SETTINGS = {"steps": 4, "batch_size": N, "lr": 1e-2, "ema": 0.9, "seed": 3, "progress": False}
trained = pytest.mark.parametrize("name", [k for k in FAMILIES if k != "ode-density"])  # its term is what trains


class Killed(Exception):
    pass


def killed_at(model, call):
    original, calls = model.loss, []

    def loss(data, generator):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return original(data, generator)

    object.__setattr__(model, "loss", loss)
    return model


@trained
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path):
    """Killed at a random step; what resumes starts from other weights and another global generator."""
    data, file = batch(name, 20), tmp_path / "run.safetensors"
    whole = made(name)
    fit(whole, data, **SETTINGS)
    step = 2 + int(torch.randint(3, (), generator=torch.Generator().manual_seed(len(name))))
    with pytest.raises(Killed):
        fit(killed_at(made(name), step), data, **SETTINGS, checkpoint=file, checkpoint_every=1)
    resumed = made(name, seed=1)
    fit(resumed, data, **SETTINGS, checkpoint=file, checkpoint_every=1)
    same(whole.state_dict(), resumed.state_dict())
    assert any(not torch.equal(p, q) for p, q in zip(whole.parameters(), made(name).parameters(), strict=True))


@trained
def test_checkpoints_of_another_family_are_refused(name, tmp_path):
    data, file = batch(name), tmp_path / "run.safetensors"
    other = "glow" if name.endswith("flow") else "flow"
    fit(made(other), batch("flow"), **{**SETTINGS, "steps": 1}, checkpoint=file)
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="run.safetensors"):
        fit(model, data, **{**SETTINGS, "steps": 1}, checkpoint=file)
    same(before, model.state_dict())


@trained
def test_a_loss_that_is_not_finite_stops_and_names_the_step(name):
    model = excited(name)
    with torch.no_grad():
        max(model.parameters(), key=lambda p: p.numel()).fill_(math.nan)
    with pytest.raises(NonFinite, match="the loss is nan at step 0|non-finite"):
        fit(model, batch(name), **SETTINGS)


@trained
def test_bfloat16_trains_float32_weights(name):
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    result = fit(model, batch(name), **{**SETTINGS, "steps": 2}, precision="bf16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert math.isfinite(result.history[-1]["loss"])
    assert any(not torch.equal(before[key], p) for key, p in model.named_parameters())


@trained
def test_half_precision_finds_a_loss_scale(name):
    """Within twenty steps the scale, which starts at 2^16, comes down to one that the gradients fit under."""
    model = made(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fp16: the gradients of", RuntimeWarning)
        result = fit(model, batch(name), **{**SETTINGS, "steps": 20}, precision="fp16", log_every=1)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert any(math.isfinite(row["loss"]) for row in result.history)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def drawn_by_class(n, seed, levels=0):
    """Images of one brightness for each class, with a little noise: a label says nearly everything."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (n,), generator=generator)
    if levels:
        return (2 * label.reshape(-1, 1, 1, 1)).expand(n, *SHAPE).clamp(max=levels - 1).contiguous(), label
    noise = torch.randn(n, *SHAPE, generator=generator)
    return 0.5 * (label.reshape(-1, 1, 1, 1) - 1.0) + 0.1 * noise, label


@pytest.mark.parametrize("name", [k for k in FAMILIES if k not in ("ode-density", "reward", "returns")])
def test_shuffled_labels_fail(name):
    """What a short training learned of the labels is gone when they are shuffled: paired, over eight batches, z > 3."""
    levels, model = FAMILIES[name].levels, made(name)
    fit(model, drawn_by_class(300, 0, levels), steps=40, batch_size=32, lr=1e-2, ema=0.8, progress=False)
    x, label = drawn_by_class(400, 1, levels)

    def cost(rows, labels):
        with torch.no_grad():
            if name.startswith("energy-model"):  # their losses are no bounds
                return float(model.given(label=labels).energy(rows).mean())
        return float(model.loss((rows, labels), torch.Generator().manual_seed(2)).detach())

    model.eval()
    gaps = torch.tensor(
        [cost(r, (k + 1) % CLASSES) - cost(r, k) for r, k in zip(x.split(50), label.split(50), strict=True)]
    )
    assert float(gaps.mean() / gaps.std() * 8**0.5) > 3, gaps
