"""Controllers: what they read from a plan, and the feedback laws."""

import numpy as np
import pytest
import torch

from boltzmix.planners.controllers import PD, InverseDynamics, OwnActions, Reference
from boltzmix.planners.space import TrajectorySpace

FULL = TrajectorySpace(5, ("x", "y", "vx", "vy"), ("ax", "ay"), dt=0.5, stride=5)
PLAIN = TrajectorySpace(5, ("x", "y"), dt=0.5)


def line() -> np.ndarray:
    """x = t² / 2 with its own velocities and actions; y = 1."""
    t = 0.5 * np.arange(5)
    zero = np.zeros(5)
    return np.stack([0.5 * t**2, zero + 1.0, t, zero, t - 0.9, zero + 0.2], 1)


def test_a_plan_is_read_between_tokens_and_rests_after_them() -> None:
    plan = Reference(FULL, line())
    np.testing.assert_allclose(plan.position(0.75), [(0.125 + 0.5) / 2, 1.0])
    np.testing.assert_allclose(plan.velocity(0.75), [0.75, 0.0])
    np.testing.assert_allclose(plan.state(-1.0), [0.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(plan.state(9.0), [2.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(plan.velocity(9.0), 0.0)
    np.testing.assert_allclose(plan.velocity(2.0), [2.0, 0.0])


def test_velocities_without_columns_are_differences() -> None:
    plan = Reference(PLAIN, line()[:, :2])
    np.testing.assert_allclose(plan.velocity(1.0), [1.0, 0.0])  # central differences of a parabola are exact
    np.testing.assert_allclose(plan.velocity(0.75), [0.75, 0.0])


def test_pd_is_its_law() -> None:
    plan, state = Reference(FULL, line()), np.array([0.1, 0.9, 0.5, 0.5])
    law = PD(3.0, 0.5, limit=None)
    np.testing.assert_allclose(law.act(state, plan, 1.0), [3 * 0.4 + 0.5 * 0.5, 3 * 0.1 + 0.5 * -0.5])
    ahead = PD(3.0, 0.0, lead=0.5, limit=None).act(state, plan, 1.0)
    np.testing.assert_allclose(ahead, 3 * (plan.position(1.5) - state[:2]))
    fed = PD(0.0, 0.0, feedforward=0.5, limit=None).act(state, plan, 1.2)
    np.testing.assert_allclose(fed, 0.5 * line()[2, 4:])
    np.testing.assert_allclose(PD(30.0, 0.0).act(state, plan, 1.0), [1.0, 1.0])  # saturates at (−1, 1)


def test_own_actions_hold_for_a_token() -> None:
    plan = Reference(FULL, line())
    for time in (0.5, 0.7, 0.999):
        np.testing.assert_allclose(OwnActions(None).act(np.zeros(4), plan, time), line()[1, 4:])
    np.testing.assert_allclose(OwnActions(None).act(np.zeros(4), plan, 1.0), line()[2, 4:])


def test_inverse_dynamics_is_asked_for_the_next_state() -> None:
    asked = []

    def model(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        asked.append((now, then))
        return (then - now)[:, :2]

    plan, state = Reference(FULL, line()), np.array([0.4, 1.0, 1.0, 0.0])
    action = InverseDynamics(model, limit=None).act(state, plan, 1.0)
    np.testing.assert_allclose(action, plan.position(1.1) - state[:2], atol=1e-6)  # one of five environment steps
    assert asked[0][0].shape == (1, 4)
    later = InverseDynamics(model, ahead=0.5, limit=None).act(state, plan, 1.0)
    np.testing.assert_allclose(later, plan.position(1.5) - state[:2], atol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 6\), got \(5, 2\)"):
        Reference(FULL, line()[:, :2])
    with pytest.raises(ValueError, match="kp"):
        PD(kp=-1.0)
    with pytest.raises(ValueError, match="limit"):
        PD(limit=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"PD\(kd=0\)"):
        PD().act(np.zeros(2), Reference(PLAIN, line()[:, :2]), 0.0)
    with pytest.raises(ValueError, match="no action columns"):
        OwnActions().act(np.zeros(2), Reference(PLAIN, line()[:, :2]), 0.0)
    with pytest.raises(ValueError, match=r"actions \(1, A\)"):
        InverseDynamics(lambda a, b: a[0]).act(np.zeros(4), Reference(FULL, line()), 0.0)
