from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import receptive_field
from deeplab_jax.models.deeplab import build

tiny = partial(
    build, num_classes=2, stage_sizes=(1, 2, 1, 1), width=1, aspp_rates=(1, 3), scales=(1.0,)
)
TINY = tiny()
MODELS = {
    "resnet": TINY,
    "stride in the 3x3": tiny(stride_placement="torch"),
    "vgg": tiny(
        backbone="vgg", stage_sizes=(1, 1, 1, 1, 2), norm="none", head_width=1, pool5a=True
    ),
    "4x4 head": tiny(head_kernel_size=4, aspp_rates=(2,)),
}


def reach(model, variables, side):
    """Side of the pixels that change the middle score, by making them NaN from the left on.

    A kernel and its zeros pass NaN on, so that no weight can hide a pixel.
    """
    height = 33
    middle = (side - 1) // 2
    columns = jnp.arange(side)

    @jax.jit
    def spoils(edge):
        inputs = jnp.where(columns <= edge, jnp.nan, 1.0)[None, None, :, None]
        logits = model.apply(variables, jnp.broadcast_to(inputs, (1, height, side, 3)))
        return jnp.isnan(logits[0, logits.shape[1] // 2, middle // 8]).any()

    inside = [edge for edge in range(middle + 1) if spoils(edge)]
    return 2 * (middle - inside[0]) + 1


@pytest.mark.parametrize("name", MODELS)
def test_the_theoretical_field_is_what_nan_pixels_reach(name, draw_variables):
    model = MODELS[name]
    side = receptive_field.theoretical(model) // 16 * 16 + 33
    found = reach(model, draw_variables(model), side)
    assert receptive_field.theoretical(model) == pytest.approx(found, abs=0)


def test_a_larger_rate_widens_the_field_by_sixteen_pixels_a_step():
    assert receptive_field.theoretical(tiny(aspp_rates=(4,))) == (
        receptive_field.theoretical(TINY) + 16
    )


def test_the_gradient_agrees_with_finite_differences(draw_variables):
    model = tiny(width=2)
    variables = draw_variables(model)
    image = np.random.default_rng(0).integers(0, 256, (33, 33, 3), np.uint8)
    found = receptive_field.gradient(model, variables, image)

    @jax.jit
    def score(inputs):
        return model.apply(variables, inputs[None])[0, 2, 2].max()

    inputs = receptive_field.make_inputs(image, model.mean_bgr)
    place = np.unravel_index(np.argmax(found), found.shape)
    expected = 0
    for color in range(3):
        step = jnp.zeros_like(inputs).at[(*place, color)].set(0.05)
        expected += abs(score(inputs + step) - score(inputs - step)) / 0.1
    assert float(found[place]) == pytest.approx(float(expected), rel=0.02)


def test_the_effective_field_is_a_mean_over_photographs_within_the_theoretical(draw_variables):
    model = tiny(width=2, aspp_rates=(1,))
    variables = draw_variables(model)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (257, 257, 3), np.uint8) for _ in range(2)]
    both = receptive_field.effective(model, variables, images, side=257)
    each = [receptive_field.effective(model, variables, [i], side=257) for i in images]
    np.testing.assert_allclose(both, np.mean(each, 0), rtol=1e-5)
    outside = (257 - receptive_field.theoretical(model)) // 2
    assert outside > 0
    assert both[:outside].sum() == both[:, -outside:].sum() == 0
    assert both[128, 128] > 0


def test_photographs_are_cut_to_their_middle_or_filled_up():
    image = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    color = np.array([7, 8, 9], np.uint8)
    np.testing.assert_array_equal(receptive_field.centre(image[:3], 3, color), image[:3])
    found = receptive_field.centre(image, 5, color)
    np.testing.assert_array_equal(found[:, 1:4], image)
    assert (found[:, 0] == color).all() and (found[:, 4] == color).all()
    np.testing.assert_array_equal(receptive_field.centre(image, 1, color), image[2:3, 1:2])


def test_the_side_that_holds_a_share_is_the_smallest():
    field = np.zeros((9, 9))
    field[4, 4], field[4, 7] = 3, 1  # the second is three pixels from the middle
    assert receptive_field.side_holding(0.75, field) == 1
    assert receptive_field.side_holding(0.76, field) == 7


def test_a_side_that_has_no_score_in_its_middle_is_refused(draw_variables):
    with pytest.raises(ValueError, match="multiple of 16 plus 1, got 320"):
        receptive_field.effective(TINY, {}, [], side=320)
