"""Planning as inference over trajectories: p(τ) ∝ p_dynamics(τ) · p_task(τ, goal).

Trajectory spaces, task terms, planners, policies and environments live here. A planner multiplies a trajectory prior,
which is any term, by terms of the task, and samples the product; this package therefore imports `boltzmix.compose`
only and never `boltzmix.models`.
"""
