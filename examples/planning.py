"""Planning among obstacles that no training data had: one prior, tasks composed at test time.

The prior is a diffusion model of motions in a square. Hidden discs made its training motions bend; it is told of none.

Run it: python examples/planning.py [picture.png [film.gif]]
"""

import sys

import boltzmix as bm
from boltzmix.planners import Box, Disc, Planner, Smooth, Waypoint

prior = bm.models.load("obstacles")
planner = Planner(prior, obstacles=[Disc(0.0, 0.0, 0.25), Box(0.2, 0.3, 0.5, 0.6)], radius=0.04)

start, goal = [-0.8, -0.1, 0.0, 0.0], [0.8, 0.1]  # x, y and velocities; a position
result = planner.plan(start, goal, seed=0)
print(result.summary())

# The same prior with more asked of it: through a point at token 12, and smoothly.
around = planner.plan(start, goal, [Waypoint([-0.2, -0.5], at=12), Smooth(0.8, 0.3)], seed=0)
print(around.summary())

# A goal that is walled in is a result with a reason, and not an exception.
ring = [Box(0.6, -0.15, 0.65, 0.35), Box(0.95, -0.15, 1.0, 0.35), Box(0.6, 0.3, 1.0, 0.35), Box(0.6, -0.15, 1.0, -0.1)]
print(Planner(prior, obstacles=ring, radius=0.04).plan(start, goal, seed=0).summary())

if len(sys.argv) > 1:
    result.plot(sys.argv[1])
    print("written to", sys.argv[1])
if len(sys.argv) > 2:
    result.animate(sys.argv[2])
    print("written to", sys.argv[2])
