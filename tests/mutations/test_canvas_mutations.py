"""Errors in how canvases are put together, planted one by one: a named law notices each."""

import pytest

from tests.compose import test_canvas
from tests.mutations.harness import Mutation, law, verify

CANVAS, CROPS, MARGINALS, PRODUCT = (f"boltzmix.compose.{m}" for m in ("canvas", "crops", "marginals", "product"))
LABELS = "boltzmix.models.labels"

CHAIN = law(test_canvas.test_the_precision_of_a_chain_is_exact, (0.9,), 6)
PICTURE = law(test_canvas.test_the_precision_of_a_picture_is_exact)
WEIGHTS = law(test_canvas.test_weights_of_averages_add_up_to_one)
LOCAL = law(test_canvas.test_conditions_multiply_by_local_quotients)
FORWARD = law(test_canvas.test_all_windows_are_rows_of_one_forward)
MEANS = law(test_canvas.test_marginals_that_differ_enter_by_their_geometric_mean)
INTEGRALS = law(test_canvas.test_marginals_integrate_the_rest_out)
STRENGTHS = law(test_canvas.test_windows_hold_their_own_pixels_only)

CANVASES = [
    Mutation("overlaps count twice", CANVAS, "a + small - b, -1, (a, b)", "a + small - b, 0, (a, b)", CHAIN),
    Mutation("corners are divided out, too", CANVAS, "math.prod(p[2] for", "min(p[2] for", PICTURE),
    Mutation("weights that do not add up", CANVAS, "weights / weights.sum(0)", "weights / len(weights)", WEIGHTS),
    Mutation(
        "pixels are taken from the window at whose edge they are",
        CANVAS,
        "near == near.amax(0)",
        "near == near.where(near >= 0, near.amax()).amin(0)",
        law(test_canvas.test_centres_are_exact_where_a_window_holds_all_neighbours),
    ),
    Mutation(
        "the average of scores is weighted",
        CANVAS,
        "weights = (near >= 0).double()",
        "weights = (near + 1).clamp(0).double()",
        law(test_canvas.test_the_mean_is_the_quotient_with_estimated_overlaps),
    ),
    Mutation(
        "a window's condition comes on top of its model",
        CANVAS,
        "Piece(crop, term, 1.0), Piece(crop, self.model, -1.0)",
        "Piece(crop, term, 1.0)",
        LOCAL,
    ),
    Mutation("both ends of an overlap in full", CANVAS, "exponent / len(terms)", "exponent", MEANS),
    Mutation("normalised, whatever its ends are", CANVAS, "closed and not self._mixed", "closed", MEANS),
    Mutation(
        "an averaged canvas claims to be noised",
        CANVAS,
        "apart and self._scales == [1.0] * len(pieces) and all(",
        "all(",
        law(test_canvas.test_averages_have_no_energy_and_say_what_they_are),
    ),
    Mutation("exponents are left out of the energy", CROPS, "total + scale * e", "total + e", CHAIN),
    Mutation(
        "what lies outside a window is not flat",
        CROPS,
        "x.new_zeros(x.shape[0], 1)",
        "x.new_ones(x.shape[0], 1)",
        law(test_canvas.test_a_window_is_flat_elsewhere),
    ),
    Mutation("windows and rows are mixed up", CROPS, ".transpose(0, 1).reshape(len", ".reshape(len", CHAIN),
    Mutation("levels of rows are mixed up", CROPS, "sigma.repeat(k)", "sigma.repeat_interleave(k)", FORWARD),
    Mutation("a window holds the whole canvas", CROPS, "mask[self.crop.slices] = 1.0", "mask[:] = 1.0", STRENGTHS),
    Mutation(
        "a condition for each row is laid over all windows",
        CROPS,
        'len(set(keys)) == 1 and not any(getattr(m, "per_row", False) is True for m in terms[0].modules())',
        "len(set(keys)) == 1",
        law(test_canvas.test_canvas_conditions_reach_the_model),
    ),
    Mutation(
        "conditions go to other windows",
        LABELS,
        "for view in views], n, device",
        "for view in views[::-1]], n, device",
        LOCAL,
    ),
    Mutation(
        "one forward for every condition",
        LABELS,
        "is not self.core for view in views",
        "is not None for view in views",
        FORWARD,
        "def _stack_rows",
    ),
    Mutation(
        "shared windows are counted twice",
        PRODUCT,
        "return sum(self._calls().values())",
        "return sum(leaf._rows() for leaf in self._leaves())",
        FORWARD,
    ),
    Mutation(
        "a part of a state counts as all of it",
        PRODUCT,
        "return total if len(numbers) == len(found) else sum(",
        "return total if numbers else sum(",
        STRENGTHS,
    ),
    Mutation(
        "a conditional in place of the marginal",
        MARGINALS,
        "block = covariance[..., kept, :][..., kept]",
        "block = covariance.inverse()[..., kept, :][..., kept].inverse()",
        INTEGRALS,
    ),
    Mutation(
        "weights of a sum are lost", MARGINALS, "term.log_weights) if len", "[0.0] * len(known)) if len", INTEGRALS
    ),
]


@pytest.mark.parametrize("mutation", CANVASES, ids=lambda mutation: mutation.name)
def test_noticed(mutation: Mutation) -> None:
    verify(mutation)
