"""Summaries print the table that people know, and hold all of its numbers."""

import copy
import math
import pickle
import re
import warnings

import pytest
import torch

from boltzmix.compose.coordinates import Coordinates, labels
from boltzmix.compose.diagnostics import statistics
from boltzmix.compose.draw import Draw, RunInfo
from boltzmix.compose.gaussian import Gaussian
from boltzmix.compose.kernels import HMC
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers import AIS, MCMC
from boltzmix.compose.summary import Summary

P, Q = Gaussian(torch.zeros(2), 1.0), Gaussian(torch.ones(2), 0.5)


def chains(x, **extra):
    return Draw(x, torch.zeros(4, 50), None, None, RunInfo("MCMC", extra=extra), chains=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_are_named_after_variables_and_places():
    x = {"mu": normal(4, 50), "theta": normal(4, 50, 2), "L": normal(4, 50, 2, 3), "one": normal(4, 50, 1)}
    names = ["mu", "theta[0]", "theta[1]", "L[0,0]", "L[0,1]", "L[0,2]", "L[1,0]", "L[1,1]", "L[1,2]", "one[0]"]
    assert labels(x) == names
    assert chains(x).summary().rows == tuple(names)
    assert labels(normal(4, 50)) == ["x"]
    at = Coordinates(x)
    for k, name in enumerate(names):
        assert at.choose(name) == [k] or name == "mu"
    assert torch.equal(at[4], x["L"][..., 0, 1])
    assert at.choose(["L", "mu"]) == [3, 4, 5, 6, 7, 8, 0]
    with pytest.raises(ValueError, match=r"no parameter 'nu' among mu, theta\[0\]"):
        at.choose("nu")


def test_numbers_are_those_of_the_diagnostics():
    x = normal(4, 50, 3)
    table = chains(x).summary()
    assert table.columns == ("mean", "sd", "5%", "95%", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
    for name, values in statistics(x).items():
        assert [table[f"x[{k}]", name] for k in range(3)] == values.tolist()
        assert list(table[name].values()) == values.tolist()
    assert table.to_dict()["x[1]"] == table["x[1]"]
    assert set(table["x[1]"]) == set(table.columns)
    assert table[0] == str(table)[0]
    for key in ("x[9]", ("x[0]", "median"), ("y", "mean")):
        with pytest.raises(KeyError, match="no row or column.*rows are"):
            table[key]


def test_the_text_is_a_table_with_the_numbers_in_their_places():
    x = {"mu": 3 + 0.01 * normal(4, 50), "big": 1e5 * normal(4, 50, seed=1), "wee": 1e-9 * normal(4, 50, seed=2)}
    table = chains(x, warmup=200, kernel="HMC", bfmi=[0.9, 0.7, math.nan]).summary()
    head, *rows = str(table).split("\n\n")[0].splitlines()
    assert head.split() == list(table.columns)
    assert len({len(row) for row in rows} | {len(head)}) == 1, "columns are not aligned"
    for row in rows:
        name, *cells = row.split()
        for column, cell in zip(table.columns, cells, strict=True):
            value = table[name, column]
            scale = table[name, "sd"] if column in ("mean", "sd", "5%", "95%") else value
            assert float(cell) == pytest.approx(value, abs=6e-4 * scale if column[0] in "ms59" else 0.5, rel=0.06)
    assert re.search(r"^mu +(2\.99|3\.00)\d{3,4} +0\.0(09|10)\d{2,3} ", str(table), re.M)
    notes = str(table).split("\n\n")[1]
    assert "4 chains by MCMC(HMC), 50 draws each, after 200 of warm-up" in notes
    assert "smallest E-BFMI 0.70" in notes


def test_many_rows_are_shortened_and_the_worst_are_first():
    x = normal(4, 50, 100)
    x[0, :, 77] += 5
    table = chains(x).summary()
    lines = str(table).split("\n\n")[0].splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[1].startswith("x[77]")
    shown = [table[line.split()[0], "r_hat"] for line in lines[1:21]]
    assert shown == sorted(table["r_hat"].values(), reverse=True)[:20]
    assert lines[-1].startswith("… and 80 more, R-hat at most ")
    assert len(table.rows) == len(table.to_dict()) == 100
    assert "x[99]" in table.rows
    assert "… and" not in str(chains(x[..., :40]).summary())
    x[..., 5] = 1.0
    assert str(chains(x).summary()).splitlines()[1].startswith("x[5]"), "NaN is hidden"


def test_warnings_are_part_of_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw = sample(P, chains=3, sampler=MCMC(HMC(step_size=80.0), draws=30), seed=0)
    text = str(draw.summary())
    assert "warning: 3 of 3 chains never moved" in text
    assert "without warm-up" in text
    assert " inf\n" in text, "R-hat of chains that never moved"
    for line in text.split("\n\n")[1].splitlines():
        assert len(line) <= 112 or not line.startswith("warning")


def test_it_is_a_string_that_copies_and_shows_in_notebooks():
    table = chains({"a<b": normal(4, 50, 60)}).summary()
    assert isinstance(table, str)
    for again in (pickle.loads(pickle.dumps(table)), copy.copy(table), copy.deepcopy(table)):
        assert again == table
        assert again.to_dict() == table.to_dict()
    page = table._repr_html_()
    assert page.count("<tr>") == 1 + 20
    assert "a&lt;b[" in page
    assert "a<b" not in page
    assert "and 40 more" in page


def test_particles_have_a_paragraph_and_weighted_numbers():
    draw = sample(P * Q, 400, seed=0)
    text = draw.summary()
    assert "400 draws by SMC" in text
    assert "log Z" in text
    assert "\n\n" not in text
    assert text["x[0]", "mean"] == pytest.approx(float(draw.x[:, 0].double().mean()), rel=1e-9)
    assert text["x[1]", "sd"] == pytest.approx(float(draw.x[:, 1].double().std(correction=0)), rel=1e-9)
    assert text.columns == ("mean", "sd", "5%", "95%")
    x, weights = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.2, 0.3, 0.5])
    by_hand = Draw(x, weights.log(), None, None, RunInfo("AIS")).summary()
    assert by_hand["x", "mean"] == pytest.approx(1.3, rel=1e-6)
    assert by_hand["x", "sd"] == pytest.approx(math.sqrt(2.3 - 1.69), rel=1e-6)
    weighted = sample(P * Q, 4000, sampler=AIS(levels=8), seed=0)
    assert bool((weighted.log_weights != 0).any())
    assert weighted.summary()["x[0]", "mean"] == pytest.approx(2 / 3, abs=0.05)
    edge = math.sqrt(1 / 3) * 1.645
    assert weighted.summary()["x[0]", "95%"] == pytest.approx(2 / 3 + edge, abs=0.1)
    assert weighted.summary()["x[0]", "5%"] == pytest.approx(2 / 3 - edge, abs=0.1)


def test_few_draws_are_summarised():
    draw = Draw(normal(2, 3, 2), torch.zeros(2, 3), None, None, RunInfo("MCMC"), chains=True)
    table = draw.summary()
    assert math.isnan(table["x[0]", "r_hat"])
    assert table["x[0]", "mean"] == pytest.approx(float(draw.x[..., 0].mean()))
    assert isinstance(table, Summary)
