"""Our side of network.py: the package's own functions, as a script of ours calls them."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from paced import leave, serve

from deeplab_jax import compilation, optim, train
from deeplab_jax.config import completed
from deeplab_jax.data import loader
from deeplab_jax.models import deeplab
from deeplab_jax.ops import xla
from deeplab_jax.presets import PRESETS
from deeplab_jax.weights import files

FORMS = contextlib.ExitStack()


def prepare(case: dict, folder: Path):
    known = {"version": f"jax {jax.__version__}", "device": jax.devices()[0].device_kind}
    if jax.default_backend() != "cpu":
        known["memory"] = lambda: jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    # Dropout is left out, since masks cannot be compared.
    fields = asdict(completed(PRESETS[case["network"]].model))
    scales = (1.0, 0.75, 0.5) if case["msc"] else (1.0,)
    changes = {"scales": scales, "dtype": case["dtype"], "dropout": 0.0, "alignment": "half_pixel"}
    model = deeplab.build(21, **{**fields, **changes})
    data = np.load(folder / "work.npz")
    shapes = train.variable_shapes(model)
    variables = files.fill(shapes, {name: data[name] for name in files.flatten(shapes)})
    if case["form"] != "ours":  # until the process ends
        FORMS.enter_context(xla.forms_of({"lax": "plain", "dots": "cpu"}[case["form"]]))
    if case["work"] == "forward":
        program, inputs = jax.jit(model.apply), jnp.asarray(data["inputs"])

        def forward():
            leave(jax.block_until_ready(program(variables, inputs)), folder, case)
            return 0.0

        return forward, known
    optimizer = optim.caffe_sgd(lambda _: case["rate"])
    batch_size, devices = case["batch"], jax.local_devices()[: case["devices"]]
    sizes = {"seed": 0, "batch_size": batch_size, "group_size": batch_size}
    step = train.make_step(model, optimizer, **sizes, axis_name=train.AXIS)
    slots = loader.place_samples(batch_size, devices=len(devices), accumulation=1)
    crops = list(zip(data["images"], data["labels"], strict=True))
    batch = loader.assemble(crops, slots, case["crop"])
    state = train.replicate(train.init_state(variables, optimizer), devices)
    step = train.on_devices(step, devices)

    def update():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return update, known


if __name__ == "__main__":
    compilation.release_compiler_memory()
    serve(prepare)
