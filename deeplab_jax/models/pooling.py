"""A name of version 0.1, which the next release drops: pooling is in ops/pooling.py."""

from typing import TYPE_CHECKING

from deeplab_jax.renamed import answering

if not TYPE_CHECKING:  # an editor is to mark the old name
    __getattr__ = answering(__name__, {"max_pool": "ops.pooling.max_pool"})
