from functools import partial

import jax
import jax.numpy as jnp
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
