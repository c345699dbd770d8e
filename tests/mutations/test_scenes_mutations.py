"""Errors that the judges of scenes, their laws and the parser can have, planted one by one: a law notices each."""

import pytest

from boltzmix.models import load
from tests.benchmarks import test_images as suite
from tests.benchmarks import test_scenes_judges as judges
from tests.benchmarks import test_scenes_law as laws
from tests.benchmarks import test_scenes_parser as parsers
from tests.benchmarks import test_style as styles
from tests.models import test_marks as pictures
from tests.mutations.harness import Mutation, law, verify

PACKAGE = "boltzmix.benchmarks.scenes"
STYLE, METHODS, MARKS = f"{PACKAGE}.style", f"{PACKAGE}.methods", "boltzmix.models.data.marks"
LAW, JUDGES, PARSER, FITTING = f"{PACKAGE}.law", f"{PACKAGE}.judges", f"{PACKAGE}.parser", f"{PACKAGE}.fitting"
SHARES = "boltzmix.benchmarks.shares"

CLOSED = laws.without_cores_the_law_is_closed_form
ROOM = laws.room_is_the_share_of_points_that_keep_the_distance
FLAGS = parsers.flags_say_what_is_wrong
BOUND = law(parsers.precision_is_the_bound_of_cramer_and_rao)
JOINT = law(parsers.joint_fit_finds_the_minimum)
DRAWS = law(laws.draws_have_what_was_asked, 200)


def fresh(check, *args):
    """A law whose module caches nothing from the code without the error."""

    def run():
        from boltzmix.benchmarks.scenes import law as module

        module._room.cache_clear()
        module._content.cache_clear()
        try:
            law(check, *args)()
        finally:
            module._room.cache_clear()
            module._content.cache_clear()

    return run


def weighted(case):
    return fresh(laws.law_is_that_of_weighted_prior_scenes, *laws.CASES[case])


def negated(case):
    conditions, powers, without, strength = laws.NEGATIONS[case]

    def run():
        laws.law_is_that_of_weighted_prior_scenes(conditions, powers, without=without, strength=strength)

    return fresh(run)


def drawn(case):
    conditions, powers, options = laws.DRAWN[case]

    def run():
        laws.draws_are_weighted_prior_scenes(conditions, powers, **options)

    return fresh(run)


LAWS = [
    Mutation("a description that is not one of N", LAW, "count**-query.total", "count**-1.0", fresh(CLOSED)),
    Mutation("no choice of the objects that match", LAW, "[math.perm(count, k) for", "[1.0 for", fresh(CLOSED)),
    Mutation(
        "objects beside a place as if it were empty",
        LAW,
        "(area**k * prior[:, k:])",
        "(area**k * (1 + 0 * prior[:, k:]))",
        weighted("a place, squared"),
    ),
    Mutation(
        "one place twice is two objects", LAW, "merged = asked.merged()", "merged = asked", weighted("one place twice")
    ),
    Mutation(
        "powers of one place once",
        LAW,
        "value for value, there_is in zip(w, placed.tolist(), strict=True) if there_is)",
        "1.0 for value, there_is in zip(w, placed.tolist(), strict=True) if there_is)",
        fresh(CLOSED),
    ),
    Mutation("room on the places", LAW, "_keeps(scenes, point, pins) & ", "", fresh(ROOM)),
    Mutation("room on each other", LAW, " & _keeps(scenes, point, placed)", "", fresh(ROOM)),
    Mutation(
        "points that found no room stay",
        LAW,
        "survivors = keeps.sum(1, keepdim=True)",
        "survivors = (0 * keeps + 1).sum(1, keepdim=True)",
        fresh(ROOM),
    ),
    Mutation(
        "the error of one batch",
        LAW,
        "(relative.var(1) / batches).sqrt()",
        "relative.var(1).sqrt()",
        fresh(laws.errors_are_those_of_repeated_runs),
    ),
    Mutation(
        "counts that are not divided by N", LAW, "l].sum(1) / n) ** power", "l].sum(1)) ** power", weighted("a colour")
    ),
    Mutation("counts without their power", LAW, "l].sum(1) / n) ** power", "l].sum(1) / n)", weighted("a colour")),
    Mutation(
        "kinds at places that are not counted",
        LAW,
        "weight = weight * member[assigned[:, j], j]",
        "pass",
        weighted("a colour beside a red place"),
    ),
    Mutation(
        "negations without their strength",
        LAW,
        "column].sum(1) / n) ** strength",
        "column].sum(1) / n)",
        negated("less red"),
    ),
    Mutation(
        "negation as a condition",
        LAW,
        "(1 - member[assigned, column].sum(1) / n)",
        "(member[assigned, column].sum(1) / n)",
        negated("without red"),
    ),
    Mutation(
        "draws with any count of a kind",
        LAW,
        "torch.multinomial(weight, rows",
        "torch.multinomial(torch.ones_like(weight), rows",
        drawn("less red"),
    ),
    Mutation("draws with the first pair of each kind", LAW, "* sizes[atom]).long()", "* 0).long()", drawn("the prior")),
    Mutation("draws that ignore the places", LAW, "(slots[:, None] < k) & (slots < k)", "(slots[:, None] < k)", DRAWS),
    Mutation(
        "draws in the order of the requests",
        LAW,
        "torch.rand(present.shape, generator=generator), 2.0)",
        "torch.arange(scenes.most).double(), 9.0)",
        DRAWS,
    ),
]

PARSERS = [
    Mutation("a sliver counts as an object", PARSER, "gain > least[kind, hue]", "gain > 0", FLAGS),
    Mutation("nothing is too close", PARSER, "apart = (gap >= scenes.distance - slack)", "apart = (gap >= 0)", FLAGS),
    Mutation("nothing is outside", PARSER, "position >= low", "position >= 0", FLAGS),
    Mutation("everything is explained", PARSER, "root <= limit", "root <= 9", FLAGS),
    Mutation(
        "no more objects than the prior has",
        PARSER,
        "for slot in range(slots):",
        "for slot in range(scenes.most):",
        parsers.more_objects_than_the_prior_has_are_found,
    ),
    Mutation(
        "what was found is not taken away",
        PARSER,
        "residual[active] -= paint(",
        "paint(",
        law(parsers.rendered_scenes_are_recovered, parsers.SMALL, 20),
    ),
    Mutation(
        "every object is a red circle",
        PARSER,
        "best = torch.stack(gains, 1).flatten(1).argmax(1)",
        "best = 0 * hue",
        law(parsers.rendered_scenes_are_recovered, parsers.SMALL, 20),
    ),
    Mutation(
        "pictures that are not finite show nothing",
        PARSER,
        "torch.where(finite, 0, -1)",
        "torch.where(finite, 0, 0)",
        parsers.pictures_that_are_not_finite_are_not_parsed,
    ),
    Mutation("fits that stop after a step", FITTING, "for _ in range(steps):", "for _ in range(1):", JOINT),
    Mutation(
        "windows that are one pixel off",
        FITTING,
        "origin[:, 0, None] + self.side",
        "origin[:, 0, None] + 1 + self.side",
        parsers.windows_are_the_renderer,
    ),
    Mutation(
        "colours of other objects in the normal equations",
        FITTING,
        "return colors * (spread",
        "return -colors * (spread",
        JOINT,
    ),
    Mutation(
        "the gradient's sign",
        FITTING,
        "return colors * (spread @ spread.mT), gradient",
        "return colors * (spread @ spread.mT), -gradient",
        JOINT,
    ),
    Mutation(
        "x and y exchanged in the slopes", FITTING, "tangent[..., axis] = 1.0", "tangent[..., 1 - axis] = 1.0", JOINT
    ),
]

JUDGED = [
    Mutation(
        "places that do not matter",
        JUDGES,
        "present & (gap <= radius)",
        "present & (gap <= 99)",
        judges.wanted_attributes_count,
    ),
    Mutation(
        "colours that do not matter",
        JUDGES,
        "agrees &= (asked.color[..., None] < 0)",
        "agrees &= (asked.color[..., None] < 9)",
        judges.wanted_attributes_count,
    ),
    Mutation(
        "shapes that do not matter",
        JUDGES,
        "agrees &= (asked.shape[..., None] < 0)",
        "agrees &= (asked.shape[..., None] < 9)",
        judges.wanted_attributes_count,
    ),
    Mutation(
        "one object meets two requests",
        JUDGES,
        "keep = agrees[row, wanted, have]",
        "have = torch.as_tensor(cost[row]).argmin(1)[wanted]; keep = agrees[row, wanted, have]",
        judges.requests_are_met_one_to_one,
    ),
    Mutation(
        "any request is enough",
        JUDGES,
        "self.met.all(1) & self.clean",
        "self.met.any(1) & self.clean",
        judges.test_exact_draws_are_right_end_to_end,
    ),
    Mutation(
        "unclean pictures are right",
        JUDGES,
        "self.met.all(1) & self.clean",
        "self.met.all(1)",
        judges.unclean_pictures_are_wrong,
    ),
    Mutation(
        "an interval centred at the rate",
        SHARES,
        "(rate + z**2 / (2 * n)) /",
        "rate /",
        judges.wilson_interval_solves_its_equation,
    ),
    Mutation(
        "an interval of Wald", SHARES, "/ n + z**2 / (4 * n**2))", "/ n)", judges.wilson_interval_solves_its_equation
    ),
    Mutation(
        "entropy as counted",
        JUDGES,
        " + (len(p) - 1) / (2 * n)",
        "",
        judges.entropy_correction_removes_most_of_the_bias,
    ),
    Mutation(
        "requested attributes in the diversity",
        JUDGES,
        "free[row, matches.found[row, j]] = False",
        "pass",
        judges.diversity_leaves_out_what_was_requested,
    ),
    Mutation(
        "distances of n pictures to their mean",
        JUDGES,
        "2 * len(x) / (len(x) - 1)",
        "1",
        judges.diversity_leaves_out_what_was_requested,
    ),
    Mutation(
        "one law for all pictures",
        JUDGES,
        "cumulative = laws.cumsum(1)",
        "cumulative = law.expand(laws.shape).cumsum(1)",
        judges.each_picture_has_its_own_law,
    ),
    Mutation(
        "a floor of twice the pictures",
        JUDGES,
        "counts / n - law).abs()",
        "(counts / n - law) / 2**0.5).abs()",
        judges.floor_is_that_of_exact_draws,
    ),
    Mutation("no correction", JUDGES, "tv**2 - floor**2", "tv**2", judges.corrected_distance_is_nearer_the_truth),
    Mutation(
        "counts below zero as none",
        JUDGES,
        "one_hot(count + 1, rows.shape[1])",
        "one_hot(count.clamp(min=0) + 1, rows.shape[1])",
        judges.impossible_counts_are_categories,
    ),
    Mutation(
        "pictures that are not finite obey",
        JUDGES,
        "share(hit.any(1) | ~parsed.finite)",
        "share(hit.any(1))",
        judges.forbidden_share_counts_pictures,
    ),
    Mutation(
        "a floor of single objects",
        JUDGES,
        "_pooled(laws[name][rows]) for rows in drawn",
        "law for rows in drawn",
        judges.exact_draws_pass_and_others_do_not,
    ),
]


STYLED = [
    Mutation(
        "colours of a palette are not shared out",
        STYLE,
        "= 1.0 / len(colors)",
        "= 1.0",
        law(styles.palettes_have_bayes_posterior),
    ),
    Mutation(
        "no object is half an object",
        STYLE,
        "member[-1] = 1.0",
        "member[-1] = 0.5 / len(colors)",
        law(styles.palettes_have_bayes_posterior),
    ),
    Mutation(
        "the law of N without the palette's share",
        STYLE,
        "posterior(layouts.color, palette) ** power",
        "within(layouts, palette).double()",
        law(styles.number_of_objects_given_a_palette),
    ),
    Mutation(
        "one object in a palette is enough",
        STYLE,
        "allowed[parsed.color].all(1)",
        "allowed[parsed.color].any(1)",
        law(styles.judges_notice_a_wrong_palette),
    ),
    Mutation(
        "marks of other palettes",
        MARKS,
        "torch.multinomial(members[which]",
        "torch.multinomial(members[which] + 0.1",
        law(pictures.test_palettes_are_fair_and_pictures_keep_to_them),
    ),
    Mutation(
        "guidance at every level",
        METHODS,
        "power * (sigma >= least)",
        "power * (sigma > 0)",
        law(lambda: suite.guidance_ends_below_its_level(load("scenes16"))),
    ),
]


@pytest.mark.parametrize("mutation", [*LAWS, *PARSERS, *JUDGED, *STYLED], ids=lambda mutation: mutation.name)
def test_a_law_notices(mutation):
    verify(mutation)
