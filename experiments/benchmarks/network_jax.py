"""Our side of network.py: the package's own functions, as a script of ours calls them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from paced import leave, serve

from deeplab_jax import compilation, optim, train
from deeplab_jax.config import completed
from deeplab_jax.data import loader
from deeplab_jax.models import deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.ops import xla
from deeplab_jax.presets import PRESETS
from deeplab_jax.weights import files


def build(case: dict) -> DeepLabV2:
    """The network of a case; dropout is left out, since masks cannot be compared."""
    fields = dataclasses.asdict(completed(PRESETS[case["network"]].model))
    scales = (1.0, 0.75, 0.5) if case["msc"] else (1.0,)
    changes = {"scales": scales, "dtype": case["dtype"], "dropout": 0.0, "alignment": "half_pixel"}
    return deeplab.build(21, **{**fields, **changes})


def in_form(function, form: str):
    """The function traced with the operations of "lax" (definitions) or "dots" (CPUs)."""
    platform = {"lax": "plain", "dots": "cpu"}.get(form)
    if platform is None:
        return function

    def traced(*arguments):
        with xla.forms_of(platform):
            return function(*arguments)

    return traced


def prepare(case: dict, folder: Path):
    known = {"version": f"jax {jax.__version__}", "device": jax.devices()[0].device_kind}
    if jax.default_backend() != "cpu":
        known["memory"] = lambda: jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    data = np.load(folder / "work.npz")
    model = build(case)
    shapes = train.variable_shapes(model)
    weights = {name: jnp.asarray(data[name]) for name in files.flatten(shapes)}
    variables = files.fill(shapes, weights)
    if case["work"] == "forward":
        program = jax.jit(in_form(model.apply, case["form"]))
        inputs = jnp.asarray(data["inputs"])

        def forward():
            result = jax.block_until_ready(program(variables, inputs))
            leave(result, folder, case)
            return 0.0

        return forward, known
    optimizer = optim.caffe_sgd(lambda _: case["rate"])
    batch_size, devices = case["batch"], jax.local_devices()[: case["devices"]]

    step = train.make_step(
        model,
        optimizer,
        seed=0,
        batch_size=batch_size,
        group_size=batch_size,
        axis_name=train.AXIS,
    )
    slots = loader.place_samples(batch_size, devices=len(devices), accumulation=1)
    crops = list(zip(data["images"], data["labels"], strict=True))
    batch = loader.assemble(crops, slots, case["crop"])
    state = train.replicate(train.init_state(variables, optimizer), devices)
    step = train.on_devices(in_form(step, case["form"]), devices)

    def update():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return update, known


if __name__ == "__main__":
    compilation.release_compiler_memory()
    serve(prepare)
