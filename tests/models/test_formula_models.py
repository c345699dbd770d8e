"""Where the names of a formula lead: weights that ship, files of `boltzmix train`, folders of diffusers."""

import json
import shutil

import pytest
import torch

import boltzmix as bm
from boltzmix.compose import Gaussian, sample
from boltzmix.models import EnergyDiffusion, load
from boltzmix.models.adapters.folders import from_folder
from boltzmix.models.formula import FormulaError, Library, formula
from boltzmix.models.formula.describe import conditions, sentence
from boltzmix.models.load import WEIGHTS, names


@pytest.fixture
def mine(tmp_path):
    """Files as `boltzmix train` leaves them."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(WEIGHTS / f"circle{suffix}", tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def test_names_are_those_that_ship_and_ones_own(mine):
    library = Library({"mine": mine})
    assert library.names() == ["mine", *names()]
    assert isinstance(library.load("mine"), EnergyDiffusion)
    x = torch.zeros(2, 2)
    torch.testing.assert_close(library.load("mine").energy(x), load("circle").energy(x))


def test_a_model_is_loaded_once(mine):
    library = Library({"mine": mine})
    found = formula(f"mine * mine * '{mine}' * circle ** 2 * 'circle'", library)
    assert found.term.exponents() == [3.0, 3.0]
    assert library.load("mine") is library.load("mine")


def test_a_path_may_stand_in_quotes(mine):
    found = formula(f"'{mine}' * bar")
    assert found.label(found.term.pairs()[0][0]) == f"'{mine}'"
    assert formula(f"'{mine.with_suffix('')}'").term.event_shape == (2,)


def test_ones_own_name_goes_before_one_that_ships():
    own = Gaussian(torch.zeros(2), 1.0)
    assert formula("circle", {"circle": own}).term is own


def test_device_and_dtype_are_those_asked_for():
    library = Library(device="cpu", dtype=torch.float64)
    term = formula("circle * bar", library).term
    assert {p.dtype for p in term.parameters()} == {torch.float64}
    assert {p.dtype for p in load("circle").parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["", "a b", "a-b", "mixture", "else", "and", "__a", "a__b", "3a", "ä"])
def test_a_name_that_no_formula_can_hold_is_refused(name, mine):
    with pytest.raises(ValueError, match="a model is called by letters"):
        Library({name: mine})


@pytest.mark.parametrize("gone", ["mine.safetensors", "mine.json"])
def test_a_missing_file_is_named(gone, mine):
    (mine.parent / gone).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        formula("mine * bar", {"mine": mine})
    assert str(mine.parent / gone) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file and no folder"):
        formula("mine", {"mine": tmp_path / "nowhere"})
    with pytest.raises(FileNotFoundError, match="neither a model"):
        formula("'circel'")


def test_a_damaged_file_is_an_error_at_its_name(mine):
    mine.write_bytes(mine.read_bytes()[:-8])
    with pytest.raises(FormulaError, match="is damaged: its SHA-256") as caught:
        formula("bar * mine", {"mine": mine})
    assert caught.value.position == 6


# ------------------------------------------------------------------ diffusers


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    """A network beside its scheduler, as folders."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("ddpm")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        num_class_embeds=5, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    net.eval().save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(num_train_timesteps=50).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline with prompts."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tests.models import tiny_pipelines as tiny  # imports both

    folder = tmp_path_factory.mktemp("text")
    tiny.stable_diffusion(folder).save_pretrained(folder / "all")
    return folder / "all"


def test_a_network_beside_its_scheduler_is_a_model(unconditional):
    import diffusers

    library = Library({"mine": unconditional})
    found = formula("mine(label=2)", library)
    net = diffusers.UNet2DModel.from_pretrained(unconditional / "unet").eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(unconditional / "scheduler")
    wanted = bm.term(net, schedule=scheduler).given(label=2)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.term.score(x, 0.5), wanted.score(x, 0.5))
    assert conditions(library.load("mine")) == {"label": "0 … 4"}
    assert "1 × 8 × 8" in sentence(library.load("mine"))
    with pytest.raises(FormulaError, match="label is a label in 0 … 4, got 5") as caught:
        formula("mine(label=5)", library)
    assert caught.value.position == 11


def test_a_flat_folder_will_do(unconditional, tmp_path):
    for file in (*(unconditional / "unet").iterdir(), *(unconditional / "scheduler").iterdir()):
        shutil.copy(file, tmp_path)
    assert from_folder(tmp_path).event_shape == (1, 8, 8)


def test_a_pipeline_is_a_model_that_takes_prompts(pipeline):
    library = Library({"sd": pipeline})
    found = formula("sd * (sd(prompt='a cat') / sd) ** 4", library)
    assert found.term.exponents() == [-3.0, 4.0]
    draw = sample(formula("sd(prompt='a cat')", library).term, 2, seed=0, sampler=None, progress=False)
    assert draw.x.shape == (2, 4, 8, 8)
    assert conditions(library.load("sd"))["prompt"] == "text"
    with pytest.raises(FormulaError, match="a prompt is one string, got int"):
        formula("sd(prompt=3)", library)


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "gone",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_of_a_network_is_named(gone, unconditional, tmp_path):
    folder = copied(unconditional, tmp_path)
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        formula("mine", {"mine": folder})
    assert str(folder / gone) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gone",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "vae",
    ],
)
def test_a_missing_file_of_a_pipeline_is_named(gone, pipeline, tmp_path):
    folder = copied(pipeline, tmp_path)
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        formula("sd", {"sd": folder})
    assert str(folder / gone) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_missing_is_named(unconditional, tmp_path):
    folder = copied(unconditional, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"two.safetensors is missing"):
        from_folder(folder)


def test_pickles_are_not_read(unconditional, tmp_path):
    folder = copied(unconditional, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="would be unpickled"):
        from_folder(folder)


def test_code_of_other_libraries_is_not_run(pipeline, unconditional, tmp_path):
    folder = copied(pipeline, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "system"]}))
    with pytest.raises(ValueError, match="asks for system of 'os'"):
        from_folder(folder)
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["mine.py", "Evil"]}))
    with pytest.raises(ValueError, match="no pipeline of diffusers"):
        from_folder(folder)
    other = copied(unconditional, tmp_path / "other")
    (other / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="no scheduler of diffusers"):
        from_folder(other)
    (other / "unet" / "config.json").write_text('{"_class_name": "Evil"}')
    (other / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(ValueError, match="the networks known are"):
        from_folder(other)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_named(text, unconditional, tmp_path):
    folder = copied(unconditional, tmp_path)
    (folder / "unet" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"unet/config.json is damaged"):
        from_folder(folder)


def test_a_folder_of_nothing_says_what_it_should_hold(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing: .* or model_index.json"):
        from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        from_folder(tmp_path / "none")
