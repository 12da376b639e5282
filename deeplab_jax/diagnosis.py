"""Where in the network the first number appears that is not finite."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from deeplab_jax.models.deeplab import DeepLabV2, make_inputs
from deeplab_jax.models.layers import Mode, Rescale
from deeplab_jax.types import Batch


def first_non_finite_layer(model: DeepLabV2, variables: Any, batch: Batch) -> str | None:
    """Name of the first layer, in the order of computing, whose output is not finite.

    `batch` is that of an update, `[devices, accumulation, photographs, ...]`. The network runs as
    in training but without dropout, on one device. None: every output is finite, and it is the
    loss or a gradient that is not.
    """
    for index in np.ndindex(batch.sample.shape[:2]):
        names, finite = _outputs(model, variables, batch.image[index], batch.sample[index])
        for name, good in zip(names, finite, strict=True):
            if not good:
                return name
    return None


def _outputs(
    model: DeepLabV2,
    variables: Any,
    image: UInt8[np.ndarray, "b h w channels"],
    sample: Integer[np.ndarray, " b"],
) -> tuple[list[str], list[bool]]:
    """The layers as they finish, and whether their outputs are finite."""
    names = []

    @jax.jit
    def run(variables, image, real):
        finite = []

        def look(layer, args, kwargs, context):
            output = layer(*args, **kwargs)
            arrays = jax.tree.leaves(output)
            if arrays and not isinstance(context.module, Rescale):  # setup has none
                names.append("/".join(context.module.path) or "the network")
                finite.append(jnp.stack([jnp.isfinite(x).all() for x in arrays]).all())
            return output

        with nn.intercept_methods(look):
            model.apply(
                variables,
                make_inputs(image, model.mean_bgr),
                Mode(train=True, real=real),
                mutable=["batch_stats"],
                method="score_maps",
            )
        return jnp.stack(finite)

    finite = run(variables, image, sample >= 0).tolist()
    return names, finite
