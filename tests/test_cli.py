"""The command line: help that teaches, one line for a user's error, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import boltzmix
from boltzmix.__main__ import main
from boltzmix.compose.errors import MissingExtra
from boltzmix.models.load import WEIGHTS


@pytest.fixture
def calls(monkeypatch):
    """What the commands were handed, instead of minutes of work."""
    found = {}

    def demo(out, **options):
        found["demo"] = (out, options)
        return SimpleNamespace(failed=[])

    def suite(name, **options):
        from boltzmix.benchmarks import SUITES

        if name not in SUITES:
            raise ValueError(f"no suite is called {name!r}; there are {', '.join(SUITES)}")
        found["bench"] = (name, options)
        return SimpleNamespace()

    def train(name, out, **options):
        found["train"] = (name, out, options)
        return SimpleNamespace(steps=3, loss=0.5, seconds=1.0)

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", demo)
    monkeypatch.setattr("boltzmix.benchmarks.run_suite", suite)
    monkeypatch.setattr("boltzmix.models.recipes.train", train)
    return found


def test_as_a_module_it_prints_its_version():
    done = subprocess.run([sys.executable, "-m", "boltzmix", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"boltzmix {boltzmix.__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["demo", "bench", "train", "examples:", "bm.sample(circle * bar"]),
        (["demo", "--help"], ["--quick", "--out", "--seed"]),
        (["sample", "--help"], ["--sampler", "--explain", "p * q", "mixture(p, q", "circle * bar", "--checkpoint"]),
        (["bench", "--help"], ["compositions", "speed", "--seeds"]),
        (["train", "--help"], ["--steps", "--out", "--print-config diffusion", "[data]", "folder =", "torchrun"]),
    ],
)
def test_help_teaches(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in said)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["bench"],
        ["train"],
        ["train", "ring", "--steps", "0"],
        ["train", "ring", "--config", "a.toml"],
        ["train", "ring", "--set", "fit.lr=1"],
        ["bench", "speed", "--seeds", "two"],
        ["sample"],
        ["sample", "circle", "--list"],
        ["sample", "circle", "-n", "0"],
        ["sample", "circle", "--dtype", "float16"],
    ],
)
def test_a_call_that_cannot_be_parsed_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: boltzmix" in capsys.readouterr().err


def test_arguments_reach_the_commands(calls, tmp_path, capsys):
    assert main(["demo", "--quick", "--seed", "3", "--out", "here"]) == 0
    assert calls["demo"] == ("here", {"quick": True, "seed": 3, "workers": 1})
    assert main(["bench", "speed", "--seeds", "2", "--out", "there"]) == 0
    assert calls["bench"] == ("speed", {"out": "there", "quick": False, "seeds": 2})
    assert main(["bench", "speed", "--only", "hmc", "guidance"]) == 0
    assert calls["bench"] == ("speed", {"out": None, "quick": False, "seeds": 5, "only": ["hmc", "guidance"]})
    assert main(["bench", "speed", "--seeds", "3", "4"]) == 0
    assert calls["bench"] == ("speed", {"out": None, "quick": False, "seeds": [3, 4]})
    assert main(["train", "ring", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert calls["train"] == ("ring", str(tmp_path), {"steps": 3, "seed": 0})
    assert "3 steps" in capsys.readouterr().out


def test_a_configuration_is_printed_changed_and_run(tmp_path, monkeypatch, capsys):
    from boltzmix.models.training import config

    assert main(["train", "--print-config", "diffusion"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    ran = []

    def run(described, name, **options):
        ran.append((described, name, options))
        return SimpleNamespace(steps=3, loss=0.5, seconds=1.0), tmp_path, "my-diffusion"

    monkeypatch.setattr(config, "run", run)
    file = str(tmp_path / "mine.toml")
    assert main(["train", "--config", file, "--set", "fit.lr=0.5", "--steps", "3", "--seed", "7", "--out", "here"]) == 0
    (described, name, options), *_ = ran
    assert name == "mine"
    assert (described["fit"]["lr"], described["fit"]["steps"], described["fit"]["seed"]) == (0.5, 3, 7)
    assert described["output"]["dir"] == "here"
    assert options["command"] == (
        "python -m boltzmix train --config mine.toml --set fit.lr=0.5 --set fit.steps=3 --set fit.seed=7"
    )
    assert f"written to {tmp_path}" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--config", file]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--print-config", "difusion"], "no example configuration is called 'difusion'; did you mean 'diffusion'"),
        (["--config", "absent.toml"], "there is no file absent.toml"),
        (["--config", "diffusion"], "--print-config diffusion > diffusion.toml"),
    ],
)
def test_mistakes_about_configurations_are_one_line(arguments, said, capsys):
    assert main(["train", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


def test_a_demo_with_failed_panels_exits_1(monkeypatch):
    monkeypatch.setattr("boltzmix.benchmarks.demo.run", lambda *a, **k: SimpleNamespace(failed=["a panel"]))
    assert main(["demo"]) == 1


def test_unknown_names_are_one_line_and_exit_2(calls, capsys, monkeypatch):
    monkeypatch.undo()  # the real ones
    assert main(["train", "unicorn"]) == 2
    assert main(["bench", "unicorn"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("boltzmix train: no recipe is called 'unicorn'; there are ring")
    assert shown[1].startswith("boltzmix bench: no suite is called 'unicorn'; there are compositions")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MissingExtra('pip install "boltzmix[digits]"'), 'boltzmix demo: pip install "boltzmix[digits]"'),
        (PermissionError(13, "Permission denied", "/pictures"), "Permission denied"),
        (ValueError("two\nlines"), "boltzmix demo: two lines"),
    ],
)
def test_errors_of_users_are_one_line(error, said, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", fail)
    assert main(["demo"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
    with pytest.raises(type(error)):
        main(["demo", "--debug"])


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("boltzmix.benchmarks.demo.run", lambda *a, **k: {}["a bug"])
    with pytest.raises(KeyError):
        main(["demo"])


def test_interruption_exits_130(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("boltzmix.benchmarks.demo.run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "boltzmix: interrupted"


# ---------------------------------------------------------------------- sample

QUICK = ["--sampler", "annealed:levels=4,sweeps=1,compile=false"]


def test_a_formula_is_drawn_and_written(tmp_path, capsys):
    from PIL import Image

    files = {option: tmp_path / "new" / f"run.{suffix}" for option, suffix in (
        ("-o", "png"), ("--gif", "gif"), ("--json", "json"), ("--save", "safetensors"))}  # fmt: skip
    options = [text for option, path in files.items() for text in (option, str(path))]
    assert main(["sample", "digits * (digits(label=3) / digits) ** 2", "-n", "5", "--seed", "7", *QUICK, *options]) == 0
    shown = capsys.readouterr()
    assert "{digits: -1, digits(label=3): 2}, a path that is annealed" in shown.out
    assert "5 draws by Annealed" in shown.out
    assert all(f"written to {path}" in shown.out for path in files.values())
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in files.values())
    assert Image.open(files["-o"]).size[0] > 50
    assert Image.open(files["--gif"]).n_frames > 1
    draw = boltzmix.Draw.load(files["--save"])
    assert draw.x.shape == (5, 1, 8, 8)
    assert len(draw.frames) == 5  # the start and four levels
    text = files["--json"].read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (report["seed"], report["n"], report["formula"]) == (7, 5, "digits * (digits(label=3) / digits) ** 2")
    assert report["normal_form"] == "{digits: -1, digits(label=3): 2}"
    assert report["info"]["evaluations"] == draw.info.evaluations
    assert len(report["summary"]["statistics"]) == 64
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["boltzmix"] == boltzmix.__version__


def test_the_draws_are_those_of_the_library(tmp_path):
    file = tmp_path / "draw.safetensors"
    assert main(["sample", "circle * bar", "-n", "20", "--seed", "3", *QUICK, "--save", str(file)]) == 0
    circle, bar = boltzmix.models.load("circle"), boltzmix.models.load("bar")
    sampler = boltzmix.Annealed(levels=4, sweeps=1, compile=False)
    wanted = boltzmix.sample(circle * bar, 20, seed=3, sampler=sampler)
    assert torch.equal(boltzmix.Draw.load(file).x, wanted.x)
    assert main(["sample", "circle * bar", "-n", "20", "--seed", "4", *QUICK, "--save", str(file)]) == 0
    assert not torch.equal(boltzmix.Draw.load(file).x, wanted.x)


def test_double_precision_and_rows_of_conditions(tmp_path):
    file = tmp_path / "draw.safetensors"
    options = [
        "--sampler",
        "reverse-ddim",
        "--steps",
        "3",
        "--dtype",
        "float64",
        "--device",
        "cpu",
        "--save",
        str(file),
    ]
    assert main(["sample", "digits(label=[1, 2, 3])", *options]) == 0
    draw = boltzmix.Draw.load(file)
    assert (draw.x.shape, draw.x.dtype) == ((3, 1, 8, 8), torch.float64)


def test_the_list_has_models_conditions_functions_and_samplers(capsys, tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(WEIGHTS / f"ring{suffix}", tmp_path / f"own{suffix}")
    assert main(["sample", "--list", "--model", f"own={tmp_path / 'own.safetensors'}"]) == 0
    shown = capsys.readouterr().out
    for word in ("own ", "label = 0 … 9", "'digits-classifier'", "1 × 8 × 8", "sigma 0.03 … 20", "energy"):
        assert word in shown
    for word in ("guidance(p, q, power=2)", "annealed-uhmc", "levels=32", "num_leapfrog=3"):
        assert word in shown
    for name in boltzmix.models.names():
        assert name in shown


def test_explain_does_not_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("boltzmix.models.formula.command.sample", lambda *a, **k: pytest.fail("it ran"))
    picture, report = tmp_path / "a.png", tmp_path / "a.json"
    options = ["--explain", "-n", "8", "-o", str(picture), "--json", str(report)]
    assert main(["sample", "circle * (bar / circle) ** 2", *QUICK, *options]) == 0
    shown = capsys.readouterr().out
    for word in ("{circle: -1, bar: 2}", "has exponent -1", "4 levels: sigma =", "17 evaluations", "just now"):
        assert word in shown
    assert not picture.exists()
    assert json.loads(report.read_text(encoding="utf-8"))["evaluations_per_draw"] == 17


@pytest.mark.parametrize(
    ("formula", "reason", "position"),
    [
        ("circle * (bar", "expected ')' to close the '(' in column 10, got the end", 13),
        ("circle * br", "did you mean 'bar'?", 9),
        ("digits(label=12)", "label is an int in [0, 10), got 12", 13),
        ("__import__('os').system('true')", "nothing of a formula is run as Python", 0),
        ("circle * digits", "terms over different variables", 9),
    ],
)
def test_a_mistake_in_a_formula_is_pointed_at(formula, reason, position, capsys):
    assert main(["sample", formula]) == 2
    said, line, caret = capsys.readouterr().err.splitlines()
    assert said.startswith("boltzmix sample: ")
    assert reason in said
    assert (line, caret) == (f"  {formula}", "  " + " " * position + "^")
    with pytest.raises(ValueError):
        main(["sample", formula, "--debug"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["circle", "--sampler", "smcc"], "did you mean 'smc'"),
        (["circle", "--sampler", "smc:ces=0.9"], "did you mean 'cess'"),
        (["circle", "--sampler", "annealed:levels=4", "--steps", "4"], "say the same"),
        (["circle", "-o", "a.txt"], "-o writes .png or"),
        (["circle", "--gif", "a.png"], "--gif writes .gif"),
        (["circle", "--json", "a"], "--json writes .json"),
        (["circle", "--save", "a.pt"], "--save writes .safetensors"),
        (["circle", "--model", "mine"], "--model is NAME=PATH"),
        (["mine", "--model", "mine=nowhere.safetensors"], "nowhere.safetensors is missing"),
        (["mine", "--model", "mine=nowhere"], "no file and no folder nowhere"),
        (["circle", "--model", "a=x", "--model", "a=y"], "is given twice"),
        (["circle", "--model", "a-b=x"], "letters, digits and single underscores"),
        (["circle", "--sampler", "reverse", "--checkpoint", "c"], "Reverse is short and keeps no checkpoint"),
        (["circle", "--sampler", "reverse", "--compile"], "--compile is for samplers that compile"),
        (["digits(label=[1, 2])", "-n", "3", "--sampler", "reverse-ddim"], "2 labels"),
        (["'digits-classifier'(label=3)", "--gif", "a.gif", "--sampler", "exact"], "--gif shows the way"),
        (["circle", "--device", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_about_a_draw_are_one_line_before_it(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_refused_before_the_run(tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    assert main(["sample", "circle", *QUICK, "-o", str(tmp_path / "a.png")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_warnings_are_lines_and_are_kept(tmp_path, capsys):
    file = tmp_path / "run.json"
    options = ["--sampler", "smc:levels=1,compile=false,path=noise", "-n", "30", "--json", str(file)]
    assert main(["sample", "circle ** 40 * bar ** 40", *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "weights collapsed" in line]
    assert len(lines) == 1
    assert lines[0].startswith("boltzmix sample: warning: SMC: weights collapsed")
    assert any("weights collapsed" in said for said in json.loads(file.read_text(encoding="utf-8"))["warnings"])


def test_progress_shows_the_time_left(capsys):
    assert main(["sample", "circle", "-n", "4", "--sampler", "reverse-ddim", "--steps", "5", "--progress"]) == 0
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "<" in shown  # elapsed<left
    assert main(["sample", "circle", "-n", "4", "--sampler", "reverse-ddim", "--steps", "5"]) == 0
    assert capsys.readouterr().err == ""


def test_a_model_folder_with_a_missing_file_is_one_line(tmp_path, capsys):
    pytest.importorskip("diffusers")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}', encoding="utf-8")
    assert main(["sample", "mine", "--model", f"mine={tmp_path}"]) == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path / 'scheduler_config.json'} is missing" in shown
    assert len(shown.splitlines()) == 1


INTERRUPTED = """
import os, signal, sys
from boltzmix.compose.samplers import base

save, count = base.Checkpoint.save, 0

def kept(self, make, force=False):
    global count
    save(self, make, True)
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))

base.Checkpoint.save = kept
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from boltzmix.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("sampler", ["annealed:levels=8,compile=false", "smc:levels=8,path=noise,compile=false"])
def test_a_run_that_was_killed_goes_on_and_draws_the_same(sampler, tmp_path, monkeypatch, capsys):
    from boltzmix.compose.samplers import base

    checkpoint = tmp_path / "run.checkpoint"

    def command(name, *more):
        files = ["--save", str(tmp_path / f"{name}.safetensors"), "-o", str(tmp_path / f"{name}.png")]
        return ["sample", "circle * bar", "-n", "40", "--seed", "5", "--sampler", sampler, *files, *more]

    assert main(command("whole")) == 0
    run = [sys.executable, "-c", INTERRUPTED, "3", "SIGKILL", *command("killed", "--checkpoint", str(checkpoint))]
    killed = subprocess.run(run, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.checkpoint", "whole.png", "whole.safetensors"]
    saves, save = [], base.Checkpoint.save
    monkeypatch.setattr(base.Checkpoint, "save", lambda self, make, force=False: (saves.append(1), save(self, make)))
    assert main(["sample", "circle * ring", *command("other", "--checkpoint", str(checkpoint))[2:]]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert main(command("resumed", "--checkpoint", str(checkpoint))) == 0
    assert len(saves) == 5  # of eight levels
    whole, resumed = (boltzmix.Draw.load(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert torch.equal(whole.x, resumed.x)
    assert (whole.log_z, whole.info.evaluations) == (resumed.log_z, resumed.info.evaluations)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "resumed.png").read_bytes()
    assert not checkpoint.exists()


def test_ctrl_c_leaves_no_half_written_file(tmp_path):
    files = ["--checkpoint", str(tmp_path / "c"), "--gif", str(tmp_path / "a.gif"), "--json", str(tmp_path / "a.json")]
    call = ["sample", "circle * bar", "-n", "40", *QUICK, *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", INTERRUPTED, "2", "SIGINT", *call]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "boltzmix: interrupted"
    assert f"goes on from {tmp_path / 'c'}" in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_ctrl_c_while_writing_leaves_nothing(at, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    if at == "write":
        monkeypatch.setattr("boltzmix.compose.pictures.image_sheet", interrupt)
    else:
        monkeypatch.setattr(os, at, interrupt)
    call = ["sample", "digits", "-n", "4", "--sampler", "reverse-ddim", "--steps", "2", "-o", str(tmp_path / "a.png")]
    assert main(call) == 130
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scenes", "scenes16"])
def test_scenes_are_composed_from_the_shell(name, tmp_path, capsys):
    """The example of the help, in three steps of each sampler that takes it."""
    if not (WEIGHTS / f"{name}.json").exists():
        pytest.skip(f"{name} does not ship yet")
    place = "x=8, y=8" if name == "scenes" else "x=5, y=5"
    formula = f"{name} * ({name}(shape='circle', {place}) / {name})**2 * ({name}(color='red') / {name})**2"
    picture, report = tmp_path / "a.png", tmp_path / "a.json"
    for sampler in ("annealed-uhmc:compile=false", "annealed-mala:compile=false", "reverse-ddim", "fkc"):
        options = ["-n", "2", "--sampler", sampler, "--steps", "3", "-o", str(picture), "--json", str(report)]
        assert main(["sample", formula, *options]) == 0, sampler
        assert picture.exists()
        said = json.loads(report.read_text(encoding="utf-8"))
        assert said["normal_form"].startswith(f"{{{name}: -3, {name}(shape='circle', {place}): 2")
        picture.unlink()
    capsys.readouterr()
    assert main(["sample", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "shape = 'circle' | 'square' | 'triangle'" in shown
    for wrong, said in (("shape='circel'", "circel"), ("x=8", "y"), ("x=99, y=8", "99"), ("colour='red'", "color")):
        assert main(["sample", f"{name}({wrong})"]) == 2
        error, _, caret = capsys.readouterr().err.splitlines()
        assert said in error
        assert caret.index("^") > 2 + len(name)
