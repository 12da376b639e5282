"""Our side of network.py: the package's own functions, as a script of ours calls them."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from paced import serve

from deeplab_jax import compilation, optim, train
from deeplab_jax.data import loader
from deeplab_jax.models import deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.ops import resize, xla
from deeplab_jax.presets import PRESETS
from deeplab_jax.weights import files


def build(case: dict) -> DeepLabV2:
    """The network of a case; dropout is left out, since masks cannot be compared."""
    fields = dataclasses.asdict(PRESETS[case["network"]].model)
    fields |= {"scales": (1.0, 0.75, 0.5) if case["msc"] else (1.0,), "dtype": case["dtype"]}
    fields |= {"dropout": 0.0, "mean_bgr": tuple(fields["mean_bgr"]), "alignment": "half_pixel"}
    return deeplab.build(21, **fields)


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
    if case["work"] == "labels":
        size = case["crop"], case["crop"]
        find = jax.jit(
            lambda x: (
                resize.resize_bilinear(x, size, alignment="half_pixel").argmax(-1).astype(jnp.uint8)
            )
        )
        return with_result(find, (jnp.asarray(data["logits"]),), folder, case), known
    model = build(case)
    shapes = train.variable_shapes(model)
    weights = {name: jnp.asarray(data[name]) for name in files.flatten(shapes)}
    variables = files.fill(shapes, weights)
    if case["work"] == "forward":
        arguments = (variables, jnp.asarray(data["inputs"]))
        program = jax.jit(in_form(model.apply, case["form"]))
        known |= roofline(in_form(model.apply, "lax"), arguments, case)
        return with_result(program, arguments, folder, case), known
    optimizer = optim.caffe_sgd(lambda _: case["rate"])
    batch_size, devices = case["batch"], jax.local_devices()[: case["devices"]]

    def step_of(form, axis_name):
        step = train.make_step(
            model,
            optimizer,
            seed=0,
            batch_size=batch_size,
            group_size=batch_size,
            axis_name=axis_name,
        )
        return in_form(step, form)

    slots = loader.place_samples(batch_size, devices=len(devices), accumulation=1)
    crops = list(zip(data["images"], data["labels"], strict=True))
    batch = loader.assemble(crops, slots, case["crop"])
    state = train.init_state(variables, optimizer)
    if len(devices) == 1:
        known |= roofline(step_of("lax", None), (state, jax.tree.map(lambda a: a[0], batch)), case)
    state = train.replicate(state, devices)
    step = train.on_devices(step_of(case["form"], train.AXIS), devices)

    def update():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return update, known


def roofline(function, arguments, case: dict) -> dict:
    """FLOP of the work, and how many a product of large matrices reaches in a second.

    They are counted for a CPU, since JAX counts none of a program that is not compiled for a GPU.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        flop = jax.jit(function).lower(*shapes).cost_analysis()["flops"]
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), case["dtype"])
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(5):
        then = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - then)
    return {"flop": flop, "ceiling": 2 * side**3 / min(seconds)}


def with_result(function, arguments, folder: Path, case: dict):
    """Leaves the array that the first call gives where network.py compares it."""
    path = folder / f"{case['form']}.npy"

    def work():
        result = jax.block_until_ready(function(*arguments))
        if not path.exists():
            np.save(path, result)
        return 0.0

    return work


if __name__ == "__main__":
    compilation.release_compiler_memory()
    serve(prepare)
