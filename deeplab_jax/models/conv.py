"""Names of version 0.1, which the next release drops: the layers are in models/layers.py."""

from typing import TYPE_CHECKING

from deeplab_jax.renamed import answering

if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(
        __name__,
        {
            "Conv": "models.layers.Conv",
            "STATISTICS_DECAY": "models.layers.STATISTICS_DECAY",
            "he_normal": "models.layers.he_normal",
            "remat_options": "ops.xla.remat_options",
        },
        {
            "Formulation": "ops.convolution.atrous_conv, which chooses by the platform",
            "formulation_for": "ops.convolution.atrous_conv, which chooses by the platform",
            "operations": "ops.convolution.atrous_conv, which chooses by the platform",
        },
    )
