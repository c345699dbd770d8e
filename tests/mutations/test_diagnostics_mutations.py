"""Errors in diagnostics, findings, summaries and pictures of chains, planted one by one: a named check notices each."""

import functools
import math
import tempfile
from pathlib import Path

import pytest

from tests.compose import test_advice, test_chain_pictures, test_diagnostics, test_draw, test_summary
from tests.mutations.harness import Mutation, law, verify

DIAGNOSTICS, ADVICE, SUMMARY, PICTURES, DRAW, COORDINATES = (
    f"boltzmix.compose.{m}" for m in ("diagnostics", "advice", "summary", "chain_pictures", "draw", "coordinates")
)
DISAGREEMENT = "boltzmix.compose.disagreement"
ENERGIES, CHAINS = (f"boltzmix.compose.samplers.{m}" for m in ("energies", "mcmc"))


def patched(check, *args):
    """One that needs a monkeypatch."""

    def run():
        with pytest.MonkeyPatch.context() as patch:
            check(*args, patch)

    return law(run)


def filed(check, *args):
    """One that writes files."""

    def run():
        with tempfile.TemporaryDirectory() as folder:
            check(*args, Path(folder))

    return law(run)


def agrees(case):
    return law(test_diagnostics.test_agrees_with_arviz, case)


def on_random(kind):
    return patched(test_diagnostics.test_everything_agrees_with_arviz_on_random_chains, kind)


explained = functools.partial(law, test_advice.test_a_large_rhat_is_explained)
ENERGY = law(test_diagnostics.test_energies_and_autocorrelations_agree_with_arviz)
RUNNING = law(test_diagnostics.test_running_energies_say_what_stored_ones_do_and_survive_a_checkpoint)
PLACED = law(test_advice.test_divergences_are_placed)
DEPTH = law(test_advice.test_trajectories_that_end_at_the_depth_are_counted)
ACCEPTED = law(test_advice.test_acceptance_far_below_the_aim_is_told_of)
HEAVY = law(test_advice.test_heavy_tails_are_named)
MARKED = law(test_chain_pictures.test_a_trace_is_the_chain_and_marks_divergences)

FORMULAS = [
    Mutation(
        "R-hat without folding",
        DIAGNOSTICS,
        "return torch.maximum(_rhat(self.scores), _rhat(self.folded()))",
        "return _rhat(self.scores)",
        law(test_diagnostics.test_rhat_sees_different_means_and_different_scales),
    ),
    Mutation(
        "the size of chains without their disagreement",
        DIAGNOSTICS,
        "total = total + c.mean(2).var(1)[:, None]",
        "pass",
        agrees("chains that disagree"),
    ),
    Mutation(
        "scores of other ranks", DIAGNOSTICS, "(rank - 0.375) / (size + 0.25)", "(rank - 0.5) / size", agrees("sticky")
    ),
    Mutation("ties have the lowest rank", DIAGNOSTICS, "rank = (first + last) / 2", "rank = first", agrees("ties")),
    Mutation(
        "chains are not split",
        DIAGNOSTICS,
        "return torch.cat([c[..., :half], c[..., c.shape[-1] - half :]], -2)",
        "return c",
        agrees("sticky"),
    ),
    Mutation(
        "an odd draw more in the first half",
        DIAGNOSTICS,
        "c[..., :half]",
        "c[..., 1 : half + 1]",
        agrees("odd draws"),
    ),
    Mutation("a sequence that is not monotone", DIAGNOSTICS, "pair.cummin(1).values", "pair", on_random("plain")),
    Mutation(
        "the last even lag is dropped",
        DIAGNOSTICS,
        "torch.where((rest > 0) | (whole >= 0), rest, 0.0)",
        "0.0 * rest",
        on_random("plain"),
    ),
    Mutation(
        "the sum goes on after a negative pair",
        DIAGNOSTICS,
        "pair[:, :-1] <= 0",
        "pair[:, :-1] <= -9",
        agrees("sticky"),
    ),
    Mutation("lags wrap round", DIAGNOSTICS, "return 1 << (2 * n - 1).bit_length()", "return n", agrees("sticky")),
    Mutation("autocovariances over n - 1", DIAGNOSTICS, "/ (m * n)", "/ (m * (n - 1))", agrees("one chain")),
    Mutation(
        "no floor under the autocorrelation time",
        DIAGNOSTICS,
        "size / tau.clamp(min=1.0 / math.log10(size))",
        "size / tau",
        agrees("antithetic"),
    ),
    Mutation(
        "the variance within chains over n",
        DIAGNOSTICS,
        "within = c.var(2).mean(1)",
        "within = c.var(2, correction=0).mean(1)",
        agrees("five draws"),
    ),
    Mutation(
        "quantiles one place off", DIAGNOSTICS, "place = size * p + (1 - p)", "place = size * p", on_random("plain")
    ),
    Mutation(
        "the better one of two tails",
        DIAGNOSTICS,
        "torch.stack(sizes).amin(0)",
        "torch.stack(sizes).amax(0)",
        on_random("plain"),
    ),
    Mutation(
        "the error of a standard deviation",
        DIAGNOSTICS,
        "(variance / mean / 4)",
        "(variance / mean / 2)",
        on_random("plain"),
    ),
    Mutation(
        "the error of a mean from ranks",
        DIAGNOSTICS,
        'std(1) / self.ess("mean").sqrt()',
        'std(1) / self.ess("bulk").sqrt()',
        on_random("heavy tails"),
    ),
    Mutation("a wide interval for an error", DIAGNOSTICS, "(0.1586553, 0.8413447)", "(0.05, 0.95)", on_random("plain")),
    Mutation("energies are not centred", DIAGNOSTICS, "(h - h.mean(1, keepdim=True)).square()", "h.square()", ENERGY),
    Mutation(
        "chains are not centred",
        DIAGNOSTICS,
        "torch.fft.rfft(c - c.mean(-1, keepdim=True), ",
        "torch.fft.rfft(c, ",
        ENERGY,
    ),
    Mutation(
        "constant coordinates have a size",
        DIAGNOSTICS,
        "torch.isfinite(high - low) & (low < high)",
        "torch.isfinite(high - low)",
        law(test_diagnostics.test_constant_and_undefined_coordinates_are_nan),
    ),
    Mutation(
        "a chunk is written over the first",
        DIAGNOSTICS,
        "found[..., k : k + size] = values",
        "found[..., : values.shape[-1]] = values",
        patched(test_diagnostics.test_chunks_change_nothing, 700),
    ),
    Mutation(
        "a block of chains is left out",
        DIAGNOSTICS,
        "power += _transform(c[:, rows : rows + size])",
        "power = _transform(c[:, rows : rows + size])",
        patched(test_diagnostics.test_chunks_change_nothing, 1),
    ),
    Mutation(
        "changes of energy that are not squared",
        ENERGIES,
        "diff(dim=0) ** 2",
        "diff(dim=0).abs()",
        RUNNING,
    ),
    Mutation("blocks with means of their own", ENERGIES, " + shift**2 * (self.count * steps / total)", "", RUNNING),
    Mutation(
        "the last energy is forgotten by a checkpoint",
        ENERGIES,
        'tensors["last"], tensors["mean"]',
        'tensors["mean"], tensors["mean"]',
        RUNNING,
    ),
]

FINDINGS = [
    Mutation(
        "short runs are held to 1.01",
        ADVICE,
        "max(RHAT, rhat_limit(chains, self.draws, tests))",
        "RHAT",
        law(test_advice.test_independent_draws_are_not_warned_of),
    ),
    Mutation(
        "the limit forgets that chains are split",
        DISAGREEMENT,
        "m, n = 2 * chains, draws // 2",
        "m, n = 2 * chains, draws",
        law(test_advice.test_limit_of_rhat_is_that_of_independent_draws),
    ),
    Mutation(
        "modes are not looked for",
        DISAGREEMENT,
        "if apart and stationary:",
        "if False:",
        explained(test_advice.apart, "multimodal"),
    ),
    Mutation(
        "chains that differ in scale are not looked at",
        DISAGREEMENT,
        "z = normal_scores(z.abs()[None])[0]",
        "pass",
        explained(test_advice.of_different_scales, "multimodal"),
    ),
    Mutation(
        "slow chains are modes",
        DISAGREEMENT,
        "if apart and stationary:",
        "if stationary:",
        explained(test_advice.slow, "slow-mixing"),
    ),
    Mutation(
        "late halves are not compared",
        DISAGREEMENT,
        "if moved and tail <",
        "if False and tail <",
        explained(test_advice.arriving, "short-warmup"),
    ),
    Mutation(
        "slow chains are thought to arrive",
        DISAGREEMENT,
        "if moved and tail <",
        "if moved or tail <",
        explained(test_advice.stickier, "slow-mixing"),
    ),
    Mutation(
        "a common trend is not seen",
        DISAGREEMENT,
        "normal_of_t(t, chains - 1) > 2.6",
        "normal_of_t(t, chains - 1) > 99.0",
        explained(test_advice.on_the_way, "short-warmup"),
    ),
    Mutation(
        "deviates of t",
        DISAGREEMENT,
        "(8 * dof + 1) / (8 * dof + 3)",
        "(8 * dof + 3) / (8 * dof + 1)",
        law(test_advice.test_deviates_of_t_have_the_probability_of_normal_ones),
    ),
    Mutation(
        "tails are not looked at",
        ADVICE,
        "smaller = torch.minimum(self.bulk, self.tail)",
        "smaller = self.bulk",
        law(test_advice.test_few_draws_are_told_of_where_enough_were_asked_for),
    ),
    Mutation(
        "a chain that stood once is stuck",
        ADVICE,
        "same = (t[rows, start : start + 16] == t[rows, :1]).flatten(1).all(1)",
        "same = (t[rows, start : start + 16] == t[rows, :1]).flatten(1)[:, 0]",
        law(test_advice.test_chains_that_are_stuck_are_counted),
    ),
    Mutation(
        "clamped coordinates are constant",
        ADVICE,
        "still &= ~self.facts.clamped.cpu()",
        "pass",
        law(test_advice.test_coordinates_that_are_constant_are_named_unless_they_are_held),
    ),
    Mutation(
        "divergences on the other side",
        ADVICE,
        '"small" if signed[k] < 0 else "large"',
        '"large" if signed[k] < 0 else "small"',
        PLACED,
    ),
    Mutation(
        "divergences are counted, not weighed",
        ADVICE,
        "weights = marked.double() / marked.sum()",
        "weights = marked.double() / marked.numel()",
        PLACED,
    ),
    Mutation(
        "all chains must have a low E-BFMI",
        ADVICE,
        "if low < max(1, 0.05 * self.chains):",
        "if low < self.chains:",
        HEAVY,
    ),
    Mutation("distances are not looked at", ADVICE, "normal_scores(z.abs()) * w", "normal_scores(z) * w", HEAVY),
    Mutation(
        "a period in units of the mass",
        ADVICE,
        "scale.double().cpu().sqrt() / deviation",
        "scale.double().cpu() / deviation",
        law(test_advice.test_resonance_is_seen_in_units_of_the_mass),
    ),
    Mutation(
        "two transitions make a period",
        ADVICE,
        "v[..., 1:] * v[..., :-1]",
        "v[..., 2:] * v[..., :-2]",
        law(test_advice.test_resonance_is_named_with_its_cure, math.pi, "overshoots"),
    ),
    Mutation(
        "long trajectories that return are not seen",
        ADVICE,
        "if not bool((turns | returns).any()):",
        "if not bool(turns.any()):",
        law(test_advice.test_resonance_is_named_with_its_cure, 2 * math.pi, "comes back to where it began"),
    ),
    Mutation(
        "a coordinate that runs away goes unnamed",
        ADVICE,
        "float(reach[k]) > _RUN_AWAY",
        "float(reach[k]) < 0",
        law(test_advice.test_a_coordinate_that_runs_away_on_trajectories_that_do_not_turn_is_named),
    ),
    Mutation(
        "integers are sent to a sampler of reals",
        ADVICE,
        'if getattr(self.facts.kernel, "moves", "real") == "real":',
        "if True:",
        law(test_advice.test_remedies_suit_the_kernel),
    ),
    Mutation("depths one too deep", ADVICE, "steps >= 2**depth - 1", "steps >= 2**depth", DEPTH),
    Mutation("any deep tree is warned of", ADVICE, "if share <= 0.01:", "if share < 0:", DEPTH),
    Mutation("acceptance is never low", ADVICE, "least = 0.6 * aim", "least = 0.1 * aim", ACCEPTED),
    Mutation(
        "one chain among others is not seen",
        ADVICE,
        "low = float(rate.mean()), rate < 0.5 * least",
        "low = float(rate.mean()), rate < 0",
        ACCEPTED,
    ),
    Mutation(
        "chains of different targets are compared",
        ADVICE,
        "convergence(_apart(t)) if facts.separate",
        "convergence(t) if facts.separate",
        law(test_advice.test_chains_with_targets_of_their_own_are_judged_one_by_one),
    ),
    Mutation(
        "energies of kept momenta are judged",
        CHAINS,
        "run.energies.count > 1 and run.kernel.fresh_momentum",
        "run.energies.count > 1",
        law(test_advice.test_energies_of_kernels_that_keep_their_momentum_are_not_judged),
    ),
]

VIEWS = [
    Mutation(
        "weights are left out of a summary",
        SUMMARY,
        "log_weights.to(rows).softmax(0)",
        "(0 * log_weights).to(rows).softmax(0)",
        law(test_summary.test_particles_have_a_paragraph_and_weighted_numbers),
    ),
    Mutation(
        "the best rows are shown",
        SUMMARY,
        "key=lambda k: -key[k]",
        "key=lambda k: key[k]",
        law(test_summary.test_many_rows_are_shortened_and_the_worst_are_first),
    ),
    Mutation(
        "cells in another column",
        SUMMARY,
        "value = values[column][k]",
        'value = values["mean"][k]',
        law(test_summary.test_the_text_is_a_table_with_the_numbers_in_their_places),
    ),
    Mutation(
        "names of rows in another order",
        COORDINATES,
        "(range(s) for s in t.shape[lead:])",
        "(range(s) for s in t.shape[:1:-1])",
        law(test_summary.test_rows_are_named_after_variables_and_places),
    ),
    Mutation(
        "statistics are not saved",
        DRAW,
        'tensors.update({f"stat/{k}": v for k, v in self.stats.items()})',
        "pass",
        filed(test_draw.test_every_type_goes_to_arviz_and_through_files),
    ),
    Mutation(
        "variables come back in another order",
        DRAW,
        "{name: values[name] for name in names}",
        "values",
        filed(test_draw.test_every_type_goes_to_arviz_and_through_files),
    ),
    Mutation(
        "densities that are not normalised",
        PICTURES,
        "/ max(1, len(row)) / width",
        "/ max(1, len(row))",
        law(test_chain_pictures.test_densities_integrate_to_one_and_are_those_of_the_draws, 1e-6),
    ),
    Mutation(
        "densities that are smoothed too much",
        PICTURES,
        "0.9 * spread * len(row) ** -0.2",
        "3.0 * spread",
        law(test_chain_pictures.test_densities_integrate_to_one_and_are_those_of_the_draws, 1.0),
    ),
    Mutation(
        "ranks of each chain alone",
        PICTURES,
        "rank = rank.reshape(c.shape)",
        "rank = (c.argsort(1).argsort(1).double() + 0.5) * len(c)",
        law(test_chain_pictures.test_ranks_of_chains_that_agree_are_even_and_of_others_are_not),
    ),
    Mutation("divergences of the first chain only", PICTURES, "_some(marked).any(0)", "_some(marked)[0]", MARKED),
    Mutation(
        "crosses where no divergence is",
        PICTURES,
        "ax.scatter(a[bad].numpy(), b[bad].numpy()",
        "ax.scatter(a[~bad].numpy(), b[~bad].numpy()",
        law(test_chain_pictures.test_pairs_mark_divergences_where_they_are),
    ),
    Mutation(
        "changes of energy across chains",
        PICTURES,
        "h.diff(dim=1).flatten()",
        "0.5 * h.diff(dim=1).flatten()",
        law(test_chain_pictures.test_energies_are_drawn_beside_their_changes),
    ),
]


@pytest.mark.parametrize("mutation", [*FORMULAS, *FINDINGS, *VIEWS], ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore")
def test_noticed(mutation):
    verify(mutation)
