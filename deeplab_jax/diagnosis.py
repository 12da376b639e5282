"""Where in the network the first number appears that is not finite."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.models.deeplab import DeepLabV2, make_inputs
from deeplab_jax.models.layers import Mode, Rescale
from deeplab_jax.types import Batch


def first_non_finite_layer(model: DeepLabV2, variables: Any, batch: Batch) -> str | None:
    """Name of the first layer, in the order of computing, whose output is not finite.

    `batch` is that of an update, `[devices, accumulation, photographs, ...]`. The network runs as
    in training but without dropout, on one device. None: every output is finite, and it is the
    loss or a gradient that is not.
    """
    names = []

    @jax.jit
    def finite_outputs(variables, image, real):
        finite = []

        def look(layer, args, kwargs, context):
            output = layer(*args, **kwargs)
            arrays = jax.tree.leaves(output)
            if arrays and not isinstance(context.module, Rescale):  # setup has none
                names.append("/".join(context.module.path) or "the network")
                finite.append(jnp.stack([jnp.isfinite(x).all() for x in arrays]).all())
            return output

        inputs, mode = make_inputs(image, model.mean_bgr), Mode(train=True, real=real)
        with nn.intercept_methods(look):
            model.apply(variables, inputs, mode, mutable=["batch_stats"], method="score_maps")
        return jnp.stack(finite)

    for index in np.ndindex(batch.sample.shape[:2]):
        good = finite_outputs(variables, batch.image[index], batch.sample[index] >= 0)
        for name, is_good in zip(names, good.tolist(), strict=True):
            if not is_good:
                return name
    return None
