"""The command line: ``python -m boltzmix``, or ``boltzmix`` once installed."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

_EXAMPLES = """\
examples:
  python -m boltzmix demo                    compose models, sample, write pictures to runs/demo/TIME/
  python -m boltzmix demo --quick --out pic  seconds instead of minutes, into the folder pic
  python -m boltzmix bench compositions      error against evaluations, judged against exact answers
  python -m boltzmix bench speed --quick     a small version of the other suite
  python -m boltzmix sample "circle * bar" -o pic.png    draw from a formula (see: sample --help)
  python -m boltzmix train ring --out mine   train a shipped model again, into the folder mine
  python -m boltzmix plan --env obstacles --start=-0.8,0 --goal 0.8,0 --avoid disc:0,0,0.3    (see: plan --help)
  python -m boltzmix train --config my.toml  train any family on your own data (see: train --help)
  python -m boltzmix collect pointmaze-umaze write training data for a planner's prior (see: collect --help)

in Python:
  import boltzmix as bm
  circle, bar = bm.models.load("circle"), bm.models.load("bar")
  draw = bm.sample(circle * bar, 4096, seed=0)
  print(draw.summary()); draw.plot("product.png")
"""

_SAMPLING = """\
formulas:
  p * q            both: the product of two densities        p ** 2           a power
  p / q            p, and not q                              0.3 * p + 0.7 * q
  digits(label=3)  a model given a condition                 mixture(p, q, weights=[0.3, 0.7])
  p * (p(label=3) / p) ** 2                                  the same as guidance(p, p(label=3), 2)
  ** 2[0.5:10]     the exponent 2 for noise levels from 0.5 to 10, and 1 elsewhere
  negation(p, q, gamma), bounded_negation(p, q, alpha)       p without q
  'my model.safetensors', 'folder/of/diffusers'              paths in quotes are models, too

examples:
  python -m boltzmix sample --list
  python -m boltzmix sample "circle * bar" -n 2000 -o cross.png
  python -m boltzmix sample "ring / line ** 0.5" --explain
  python -m boltzmix sample "mixture(circle, bar, weights=[1, 3])" --sampler smc:cess=0.95 --json run.json
  python -m boltzmix sample "digits * (digits(label=3) / digits) ** 3" -n 16 --sampler annealed-hmc -o threes.png
  python -m boltzmix sample "guidance(digits, digits(label=8), 2[0.3:5])" -n 16 --gif eights.gif --sampler annealed
  python -m boltzmix sample "digits(label=[0, 1, 2, 3])" --sampler reverse-ddim --steps 30 -o four.png
  python -m boltzmix sample "mine * bar" --model mine=runs/weights/ring.safetensors -o mine.png
{scenes}
A run with --checkpoint FILE that was killed goes on from there when the same command is given again.
"""

_SCENES = """\
  python -m boltzmix sample "scenes * (scenes(shape='circle', x=8, y=8) / scenes)**2 \\
      * (scenes(color='red', x=24, y=20) / scenes)**2" -n 16 --sampler annealed-uhmc --seed 0 -o scenes.png
"""

_TRAINING = """\
from a file:
  python -m boltzmix train --print-config diffusion > my.toml    an example to start from: {names}
  python -m boltzmix train --config my.toml                      train it
  python -m boltzmix train --config my.toml --set fit.lr=1e-3 --set output.name=slow
  torchrun --nproc_per_node 2 -m boltzmix train --config my.toml --set fit.accumulate=2

the file's sections:
  [model]   class, arguments, net: any family of boltzmix.models; loc = "data" centres it; device
  [data]    name = a toy, "digits", "digit_levels", "dequantised_digits", "mnist", "cifar10";
            or folder = images in one subfolder for each label; or npz = arrays, keys = which of them;
            split, labels = false; [data.transforms] rescale, dequantise, flip, noise, flatten
  [fit]     arguments of boltzmix.models.fit: steps, batch_size, lr, ema, precision = "bf16", accumulate,
            sheets = "pictures", tensorboard = "events", …
  [output]  dir, name
"""

_COLLECTING = """\
environments:
  pointmaze-umaze, -medium, -large             gymnasium-robotics' mazes: pip install "boltzmix[planning]"
  ogbench-pointmaze-medium, -large, -giant     ogbench's
  obstacles                                    a square without any, needs nothing beyond boltzmix

examples:
  python -m boltzmix collect pointmaze-umaze                 what `train pointmaze-umaze` reads
  python -m boltzmix collect pointmaze-medium --steps 50000 --seed 3 --out mine.npz

A run that was killed goes on where it last saved when the same command is given again; a file that was made with the
same settings is left as it is. The same settings give the same bytes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 where something did not hold, 2 for a user's error, 130 after Ctrl-C."""
    arguments = _parser().parse_args(_negative_values(sys.argv[1:] if argv is None else argv))
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("boltzmix: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, ImportError, OSError) as error:
        if arguments.debug:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"boltzmix {arguments.command}: {said}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    import boltzmix

    parser = argparse.ArgumentParser(
        prog="boltzmix",
        description="Compose generative models as energies, and sample what you composed, correctly.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"boltzmix {boltzmix.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error instead of one line")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        parents=[shared],
        help="compose shipped models, judge the result, write pictures",
        description="Samples compositions of shipped models with one setting for each gallery, judges every one of "
        "them beside exact draws or real digits, writes pictures, results.json and the worst panel, and prints a "
        "table. Under three minutes on two cores.",
    )
    demo.add_argument("--out", metavar="DIR", help="where to write (default: runs/demo/TIME)")
    demo.add_argument("--quick", action="store_true", help="few draws, seconds instead of minutes")
    demo.add_argument("--seed", type=int, default=0, help="of every panel (default: 0)")
    demo.add_argument("--workers", type=_positive, help="processes, one thread each (default: 2, or 1 with --quick)")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        parents=[shared],
        help="run a benchmark suite and print its table",
        description="Runs a suite and writes results.json, a table and plots.",
        epilog="suites:\n" + "\n".join(f"  {name:14s}{what}" for name, what in _suites().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("suite", metavar="SUITE", help=f"one of {', '.join(_suites())}")
    bench.add_argument("--quick", action="store_true", help="smaller sizes, to see that everything runs")
    bench.add_argument("--out", metavar="DIR", help="where to write (default: runs/SUITE/TIME)")
    bench.add_argument(
        "--seeds", metavar="N", type=int, nargs="+", default=[5], help="how many (default: 5), or, of several, which"
    )
    bench.add_argument("--only", metavar="PART", nargs="+", help="some parts of the suite, by the names in its table")
    bench.add_argument("--targets", metavar="NAME", nargs="+", help="some targets only (samplers)")
    bench.add_argument("--jobs", metavar="N", type=_positive, help="processes, one thread each (samplers)")
    bench.add_argument("--backend", metavar="NAME", help="of joblib: loky, threading, dask or ray (samplers)")
    bench.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, help="whether other libraries run, too (samplers)"
    )
    bench.set_defaults(run=_bench)

    draw = commands.add_parser(
        "sample",
        parents=[shared],
        help="draw from a formula over models, and write pictures",
        description="Draws from a formula over models: those that ship, files of `boltzmix train`, folders of "
        "diffusers. The formula is parsed, and never run as Python.",
        epilog=_SAMPLING.format(scenes=_scenes()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    draw.add_argument("formula", metavar="FORMULA", nargs="?", help='e.g. "circle * bar"')
    draw.add_argument("--list", action="store_true", help="models with their conditions and ranges, and samplers")
    draw.add_argument("--explain", action="store_true", help="normal form, path, plan and cost, and do not run")
    draw.add_argument("-n", metavar="N", type=_positive, help="draws (default: 16 images, 1000 of anything else)")
    draw.add_argument("--sampler", metavar="NAME[:KEY=VALUE,…]", default="auto", help="see --list (default: auto)")
    draw.add_argument("--steps", metavar="N", type=_positive, help="the sampler's steps or levels")
    draw.add_argument("--seed", type=int, default=0, help="the same seed gives the same draws (default: 0)")
    draw.add_argument(
        "--model", metavar="NAME=PATH", action="append", default=[], help="call a .safetensors file or a folder NAME"
    )
    draw.add_argument("-o", "--out", metavar="FILE.png", help="a grid of images, a scatter, or histograms")
    draw.add_argument("--gif", metavar="FILE.gif", help="the way from noise to the draws")
    draw.add_argument("--json", metavar="FILE.json", help="diagnostics, seed and versions")
    draw.add_argument("--save", metavar="FILE.safetensors", help="the draws, for boltzmix.Draw.load")
    draw.add_argument("--checkpoint", metavar="FILE", help="what a killed run goes on from, bit for bit")
    draw.add_argument("--device", metavar="NAME", help="cpu, cuda, … (default: the models' own)")
    draw.add_argument("--dtype", choices=("float32", "float64"), help="of networks and draws (default: their own)")
    draw.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the sampler's steps (default: if it pays)"
    )
    draw.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar with the time left (default: on a terminal)"
    )
    draw.set_defaults(run=_sample, usage=draw.error)

    from boltzmix.benchmarks.planning import options

    plan = commands.add_parser(
        "plan",
        parents=[shared],
        help="plan a way around obstacles that no training data had, write a picture and a video",
        description="Plans from a start to a goal: a trained prior says how things move, terms of the task say where "
        "to and around what. Prints the result and writes a picture and a video.",
        epilog=options.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_arguments(plan)
    plan.set_defaults(run=_plan)

    collect = commands.add_parser(
        "collect",
        parents=[shared],
        help="make training data: a waypoint controller drives between random points",
        description="Drives a ball along shortest paths between random points of an environment and writes states, "
        "actions and goals to an npz file.",
        epilog=_COLLECTING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    collect.add_argument("env", metavar="ENV", help="an environment, see below")
    collect.add_argument("--steps", metavar="N", type=_positive, help="at least (default: what the recipes want)")
    collect.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    collect.add_argument("--out", metavar="FILE.npz", help="default: runs/data/ENV.npz")
    collect.add_argument("--overwrite", action="store_true", help="replace a file that was made with other settings")
    collect.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar with the time left (default: on a terminal)"
    )
    collect.set_defaults(run=_collect)

    train = commands.add_parser(
        "train",
        parents=[shared],
        help="train a model that a file describes, or one of the shipped models again",
        description="Trains and writes NAME.safetensors and NAME.json, which boltzmix.models.load(NAME, DIR) reads. "
        "The same command after a kill resumes exactly where the last checkpoint stood.",
        epilog=_TRAINING.format(names=_configs()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("name", metavar="NAME", nargs="?", help="a recipe, e.g. ring, digits or digits-classifier")
    train.add_argument("--config", metavar="FILE", help="a .toml or .json file that describes the run")
    train.add_argument("--print-config", metavar="EXAMPLE", help=f"print a file to start from: {_configs()}")
    train.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a value of the file, e.g. fit.lr=1e-3"
    )
    train.add_argument("--steps", type=_positive, help="fewer or more steps than the recipe or the file says")
    train.add_argument("--seed", type=int, help="of the weights, the data order and the noise (default: 0)")
    train.add_argument("--out", metavar="DIR", help="where to write (default: runs/weights, or what the file says)")
    train.set_defaults(run=_train, usage=train.error)
    return parser


def _suites() -> dict[str, str]:
    from boltzmix.benchmarks import SUITES

    return SUITES


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def _demo(arguments: argparse.Namespace) -> int:
    from boltzmix.benchmarks.demo import run

    workers = arguments.workers or (1 if arguments.quick else min(2, os.cpu_count() or 1))
    report = run(arguments.out, quick=arguments.quick, seed=arguments.seed, workers=workers)
    return 1 if report.failed else 0


def _bench(arguments: argparse.Namespace) -> int:
    from boltzmix.benchmarks import run_suite

    names = ("only", "targets", "jobs", "backend", "peers")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    seeds = arguments.seeds[0] if len(arguments.seeds) == 1 else arguments.seeds
    report: Any = run_suite(arguments.suite, out=arguments.out, quick=arguments.quick, seeds=seeds, **options)
    return 0 if report is not None else 1


def _scenes() -> str:
    from pathlib import Path

    weights = Path(__file__).resolve().parent / "models" / "weights"
    return _SCENES if (weights / "scenes.json").exists() else ""


def _sample(arguments: argparse.Namespace) -> int:
    if (arguments.formula is None) != arguments.list:
        arguments.usage("say a FORMULA, or --list")
    from boltzmix.models.formula import FormulaError, command

    try:
        return command.run(arguments)
    except FormulaError as error:  # its lines show where the mistake is
        if arguments.debug:
            raise
        print(command.pointed(error), file=sys.stderr)
        return 2


def _plan(arguments: argparse.Namespace) -> int:
    from boltzmix.benchmarks.planning import command

    return command.run(arguments)


def _collect(arguments: argparse.Namespace) -> int:
    from boltzmix.planners import data

    file = data.collect(
        arguments.env,
        data.STEPS.get(arguments.env, data.DEFAULT_STEPS) if arguments.steps is None else arguments.steps,
        seed=arguments.seed,
        path=arguments.out,
        progress=arguments.progress,
        overwrite=arguments.overwrite,
    )
    made = data.read_npz(file)
    print(f"{file}: {len(made.observations)} steps in {len(made)} episodes")
    return 0


def _negative_values(argv: Sequence[str]) -> list[str]:
    """``--start -1,2`` as ``--start=-1,2``: argparse takes ``-1,2`` for an option."""
    found: list[str] = []
    for word in argv:
        if found and found[-1] in ("--start", "--goal") and word[:1] == "-" and word[1:2] in set(".0123456789"):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _configs() -> str:
    from pathlib import Path

    folder = Path(__file__).resolve().parent / "models" / "configs"
    return ", ".join(sorted(path.stem for path in folder.glob("*.toml")))


def _train(arguments: argparse.Namespace) -> int:
    given = [arguments.name, arguments.config, arguments.print_config]
    if sum(value is not None for value in given) != 1:
        arguments.usage("say one of NAME, --config FILE and --print-config EXAMPLE")
    if arguments.set and arguments.config is None:
        arguments.usage("--set changes a value of a file: it goes with --config")
    from boltzmix.models.training import config

    if arguments.print_config is not None:
        print(config.example(arguments.print_config), end="")
        return 0
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks
    if arguments.name is not None:
        from boltzmix.models import recipes

        name, folder = arguments.name, arguments.out or "runs/weights"
        result = recipes.train(name, folder, steps=arguments.steps, seed=arguments.seed or 0)
    else:
        settings = list(arguments.set)
        settings += [] if arguments.steps is None else [f"fit.steps={arguments.steps}"]
        settings += [] if arguments.seed is None else [f"fit.seed={arguments.seed}"]
        said = [f"--set {shlex.quote(setting)}" for setting in settings]
        path = str(arguments.config)
        described = config.override(config.read(path), settings)
        if arguments.out is not None:
            described.setdefault("output", {})["dir"] = arguments.out
        file = os.path.basename(path)
        command = " ".join(["python -m boltzmix train --config", shlex.quote(file), *said])
        result, folder, name = config.run(described, os.path.splitext(file)[0], command=command)
    if first:
        print(f"{name}: {result.steps} steps, loss {result.loss:.4f}, {result.seconds:.0f} s")
        print(f"written to {os.path.join(folder, name)}.safetensors and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
