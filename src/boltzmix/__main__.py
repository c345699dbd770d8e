"""The command line: ``python -m boltzmix``, or ``boltzmix`` once installed."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

_EXAMPLES = """\
examples:
  python -m boltzmix demo                    compose models, sample, write pictures to runs/demo/TIME/
  python -m boltzmix demo --quick --out pic  seconds instead of minutes, into the folder pic
  python -m boltzmix bench compositions      error against evaluations, judged against exact answers
  python -m boltzmix bench speed --quick     a small version of the other suite
  python -m boltzmix train ring --out mine   train a shipped model again, into the folder mine

in Python:
  import boltzmix as bm
  circle, bar = bm.models.load("circle"), bm.models.load("bar")
  draw = bm.sample(circle * bar, 4096, seed=0)
  print(draw.summary()); draw.plot("product.png")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 where something did not hold, 2 for a user's error, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
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
    bench.add_argument("--seeds", type=_positive, default=5, help="how many seeds (default: 5)")
    bench.set_defaults(run=_bench)

    train = commands.add_parser(
        "train",
        parents=[shared],
        help="train one of the shipped models again",
        description="Trains a recipe and writes NAME.safetensors and NAME.json; a run that was killed resumes.",
    )
    train.add_argument("name", metavar="NAME", help="a recipe, e.g. ring, digits or digits-classifier")
    train.add_argument("--steps", type=_positive, help="fewer or more steps than the recipe's")
    train.add_argument("--seed", type=int, default=0, help="of the weights, the data order and the noise")
    train.add_argument("--out", metavar="DIR", default="runs/weights", help="where to write (default: runs/weights)")
    train.set_defaults(run=_train)
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

    report: Any = run_suite(arguments.suite, out=arguments.out, quick=arguments.quick, seeds=arguments.seeds)
    return 0 if report is not None else 1


def _train(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from boltzmix.models import recipes

    result = recipes.train(arguments.name, arguments.out, steps=arguments.steps, seed=arguments.seed)
    print(f"{arguments.name}: {result.steps} steps, loss {result.loss:.4f}, {result.seconds:.0f} s")
    print(f"written to {Path(arguments.out) / arguments.name}.safetensors and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
