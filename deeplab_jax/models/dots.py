"""Names of version 0.1, which the next release drops: these operations are in ops/."""

from typing import TYPE_CHECKING

from deeplab_jax.renamed import answering

if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(
        __name__,
        {
            "AT_ONCE": "ops.convolution_cpu.AT_ONCE",
            "LONG": "ops.convolution_cpu.LONG",
            "MIRRORED": "ops.convolution_cpu.REVERSED",
            "POSITIONS": "ops.convolution_cpu.POSITIONS",
            "WIDE": "ops.convolution_cpu.WIDE",
            "add_relu": "ops.norm.add_relu",
            "atrous_conv": "ops.convolution.atrous_conv",
            "computed_once": "ops.xla.computed_once",
            "max_pool": "ops.pooling.max_pool",
        },
        {"KEEP_REMAT": "ops.xla.remat_options(backend)"},
    )
