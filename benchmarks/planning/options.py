"""Options of ``python -m boltzmix plan`` and the names they take; imports nothing heavy, every --help reads it."""

import argparse

PRIORS = {
    "pointmaze-umaze": "pointmaze-umaze",
    "pointmaze-medium": "pointmaze-medium",
    "pointmaze-large": "pointmaze-large",
    "obstacles": "obstacles",
}
"""Names of weights by the names of environments."""

HELP = """\
obstacles (--avoid, any number of them; lengths in the environment's units, metres in the mazes):
  disc:x,y,radius                     a disc
  box:x_low,y_low,x_high,y_high       a box
  polygon:x,y;x,y;x,y[;…]             a polygon, in quotes, because of the shell
  disc:x,y,radius@vx,vy               any of these that moves, with its velocity

environments:
  obstacles                           an empty square world, needs nothing beyond boltzmix
  pointmaze-umaze, -medium, -large    gymnasium-robotics' mazes: pip install "boltzmix[planning]"

examples:
  python -m boltzmix plan --env obstacles --list               where starts and goals may lie
  python -m boltzmix plan --env obstacles --start -0.8,-0.8 --goal 0.8,0.8 --avoid disc:0,0,0.3
  python -m boltzmix plan --env pointmaze-umaze --start -1,1 --goal -1,-1 --avoid disc:1,0.2,0.15 --seed 3
  python -m boltzmix plan --env pointmaze-umaze --start -1,1 --goal -1,-1 --budget-ms 100 --json run.json

The obstacles of --avoid were in no training data: the prior says how things move, and terms of the task say where not.
The exit code is 0 for a plan that an independent checker finds feasible, and 1 where there is none.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--env", metavar="NAME", required=True, help=f"one of {', '.join(PRIORS)}")
    parser.add_argument("--start", metavar="X,Y", help="position to start from, at rest")
    parser.add_argument("--goal", metavar="X,Y", help="position to reach")
    parser.add_argument(
        "--avoid", metavar="OBSTACLE", action="append", default=[], help="disc:…, box:… or polygon:…; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="the environment's bounds and walls, and do not plan")
    parser.add_argument("-n", metavar="N", type=int, default=8, help="plans to draw, the best is kept (default: 8)")
    parser.add_argument("--horizon", metavar="H", type=int, help="tokens of a plan (default: the prior's)")
    parser.add_argument("--budget-ms", metavar="MS", type=float, help="stop refining after so many milliseconds")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same plan (default: 0)")
    parser.add_argument("--prior", metavar="FILE", help="weights of your own, .safetensors of `boltzmix train`")
    parser.add_argument("--out", metavar="DIR", help="where to write plan.png and the video (default: runs/plan/TIME)")
    parser.add_argument("--video", choices=("gif", "mp4", "none"), default="gif", help="default: gif")
    parser.add_argument("--json", metavar="FILE.json", help="result, settings and versions")
