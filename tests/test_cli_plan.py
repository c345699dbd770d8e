"""``python -m boltzmix plan``: results in words, pictures, JSON, and mistakes in one line."""

import json

import pytest
import torch

from boltzmix.__main__ import main
from boltzmix.benchmarks.planning import command
from boltzmix.compose import Gaussian
from boltzmix.compose.errors import MissingExtra
from tests.planners.twins import smooth

SPACE = {"horizon": 12, "state": ["x", "y", "vx", "vy"], "dt": 0.25, "bounds": [[-1.0, 1.0], [-1.0, 1.0]]}


@pytest.fixture
def prior(monkeypatch):
    """Smooth random motions in place of a trained network."""
    found = Gaussian(torch.zeros(12, 4), smooth(12, 4, length=4.0).float())
    found.trajectory = SPACE
    monkeypatch.setattr(command, "prior_of", lambda name: found)
    return found


ASK = ["plan", "--env", "obstacles", "--start", "-0.8,0", "--goal", "0.8,0"]


def test_a_plan_is_told_drawn_filmed_and_written(prior, tmp_path, capsys):
    from PIL import Image

    report = tmp_path / "run.json"
    options = ["--avoid", "disc:0,0,0.25", "--seed", "3", "-n", "4", "--out", str(tmp_path), "--json", str(report)]
    assert main([*ASK, *options]) == 0
    said = capsys.readouterr().out
    for word in ("from -0.8,0 to 0.8,0, avoiding disc:0,0,0.25", "feasible", "evaluations", "clearance", "seed 3"):
        assert word in said
    assert Image.open(tmp_path / "plan.png").size[0] > 100
    assert Image.open(tmp_path / "plan.gif").n_frames > 3
    found = json.loads(
        report.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    assert (found["status"], found["seed"], found["asked"]["avoid"]) == ("feasible", 3, ["disc:0,0,0.25"])
    path = torch.tensor(found["trajectories"])[0, :, :2]
    assert path[0].tolist() == pytest.approx([-0.8, 0.0], abs=1e-6)
    assert path[-1].tolist() == pytest.approx([0.8, 0.0], abs=1e-6)
    assert float(path.norm(dim=1).min()) > 0.25 + 0.04 - 1e-6


def test_the_same_seed_gives_the_same_plan(prior, tmp_path):
    plans = []
    for seed in (3, 3, 4):
        file = tmp_path / "run.json"
        options = ["--seed", str(seed), "-n", "2", "--video", "none", "--out", str(tmp_path), "--json", str(file)]
        assert main([*ASK, *options]) == 0
        plans.append(json.loads(file.read_text(encoding="utf-8"))["trajectories"])
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_no_plan_names_what_is_in_the_way_and_exits_1(prior, tmp_path, capsys):
    walls = ("box:0.5,-0.3,0.55,0.3", "box:0.95,-0.3,1,0.3", "box:0.5,0.25,1,0.3", "box:0.5,-0.3,1,-0.25")
    avoid = [text for wall in walls for text in ("--avoid", wall)]
    file = tmp_path / "run.json"
    assert main([*ASK, *avoid, "--out", str(tmp_path), "--json", str(file)]) == 1
    said = capsys.readouterr().out
    assert "infeasible" in said
    assert "no path leads" in said
    assert json.loads(file.read_text(encoding="utf-8"))["trajectories"] == []


def test_the_list_says_where_starts_may_lie(capsys):
    assert main(["plan", "--env", "obstacles", "--list"]) == 0
    assert "obstacles: x -1 … 1, y -1 … 1; a body of radius 0.04, 0 walls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env", "maze"], "no environment is called 'maze'; --env is one of pointmaze-umaze"),
        (["--env", "obstacles"], "say both --start X,Y and --goal X,Y"),
        ([*ASK[1:], "--start", "1,two"], "--start is two finite numbers X,Y, as in --start 1,-0.5; got '1,two'"),
        ([*ASK[1:], "--goal", "1,2,3"], "--goal is two finite numbers"),
        ([*ASK[1:], "--goal", "nan,0"], "--goal is two finite numbers"),
        ([*ASK[1:], "--goal", "1.5,0"], "--goal 1.5,0 lies outside the world, x -1 … 1"),
        ([*ASK[1:], "--avoid", "disc:0,0"], "'disc:0,0': expected 3 numbers x,y,r, got 2"),
        ([*ASK[1:], "--avoid", "blob:1"], "obstacles are written as disc:x,y,r"),
        ([*ASK[1:], "-n", "0"], "-n is a positive number of plans, got 0"),
        ([*ASK[1:], "--budget-ms", "-5"], "budget_ms"),
        ([*ASK[1:], "--json", "run.txt"], "--json writes .json"),
        ([*ASK[1:], "--prior", "nowhere.safetensors"], "--prior is a file .safetensors"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(arguments, said, prior, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_missing_weights_say_how_to_make_them(tmp_path, monkeypatch, capsys):
    from boltzmix.benchmarks.planning import priors

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(priors, "WEIGHTS", tmp_path)
    assert main(ASK) == 2
    shown = capsys.readouterr().err
    assert "no weights called 'obstacles'" in shown
    assert "python -m boltzmix train obstacles" in shown


def test_a_missing_extra_names_it(monkeypatch, capsys):
    from boltzmix.planners import environments

    def fail(name):
        raise MissingExtra('PointMaze needs gymnasium-robotics: pip install "boltzmix[planning]"')

    monkeypatch.setattr(environments, "make", fail)
    assert main(["plan", "--env", "pointmaze-umaze", "--start", "1,1", "--goal", "0,0"]) == 2
    assert 'pip install "boltzmix[planning]"' in capsys.readouterr().err


def test_points_in_walls_are_refused(prior, capsys):
    pytest.importorskip("gymnasium_robotics")
    assert main(["plan", "--env", "pointmaze-umaze", "--start", "0,0", "--goal", "1,1"]) == 2
    assert "--start 0,0 lies in a wall, and the body has a radius of 0.1" in capsys.readouterr().err
    assert main(["plan", "--env", "pointmaze-umaze", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "##########" in shown
    assert "centres of the free cells: -1,1  0,1  1,1" in shown


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for word in ("disc:x,y,radius", "pointmaze-umaze", "--budget-ms", "exit code", "examples:"):
        assert word in shown
