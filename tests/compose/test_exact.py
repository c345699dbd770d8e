"""Exact draws: the term's own, with its weights and evidence, and clear errors where there are none."""

import pytest
import torch
from torch.distributions import Categorical

from boltzmix.compose import SMC, Exact, Gaussian, sample, term

P = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.5], [0.5, 0.8]]))


def test_draws_are_those_of_the_term_from_the_same_seed():
    draw = sample(P, 100, sampler=Exact(), seed=3)
    assert torch.equal(draw.x, P.sample(100, torch.Generator().manual_seed(3)))
    assert (draw.log_z, draw.log_z_se) == (0.0, 0.0)
    assert draw.log_weights.tolist() == [0.0] * 100
    assert draw.info.evaluations == 0.0


def test_discrete_terms_are_drawn_without_being_asked():
    """Frequencies of three values: each within 5 standard errors (false-positive rate 2e-6)."""
    chances = torch.tensor([0.2, 0.5, 0.3])
    draw = sample(term(Categorical(chances)), 20_000, seed=0)
    assert draw.info.sampler == "Exact"
    found = torch.bincount(draw.x.flatten(), minlength=3) / 20_000
    assert bool(((found - chances).abs() < 5 * (chances * (1 - chances) / 20_000).sqrt()).all())


def test_continuous_formulas_still_take_smc():
    assert sample(P * P, 50, seed=0).info.sampler == "SMC"


def test_what_has_no_exact_draws_is_refused():
    with pytest.raises(TypeError, match="no exact draws"):
        sample(P * P, 10, sampler=Exact())
    with pytest.raises(TypeError, match="dtype"):
        sample(P, 10, sampler=Exact(), dtype=torch.float64)
    with pytest.raises(TypeError, match="real variables"):
        sample(term(Categorical(torch.ones(3))), 10, sampler=SMC())
