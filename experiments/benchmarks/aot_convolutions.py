"""Compile the forms of atrous convolutions' weight gradients for an H100, each by itself.

    python experiments/benchmarks/aot_convolutions.py > experiments/results/weight_gradients_h100.md

On the layers of ResNet-101 and VGG-16 that have a rate, for 10 crops of 321 pixels. Needs the extra
`aot`, no GPU. Expected on two cores: two minutes.
"""

import os
import subprocess
import sys
from functools import partial

import aot
import chips
import hlo
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from deeplab_jax.ops import convolution_gpu, plain

TARGET = "h100"
BATCH, SIDE = 10, 41
LAYERS = [
    ("res4", 256, 256, 2),
    ("res5", 512, 512, 4),
    ("conv5", 512, 512, 2),
    *(("fc8", 2048, 21, rate) for rate in (6, 12, 18, 24)),
    *(("fc6", 512, 1024, rate) for rate in (6, 12, 18, 24)),
]
FORMS = {
    "chosen": convolution_gpu.weight_gradient,
    "space to batch": convolution_gpu.by_space_to_batch,
    "shifted gradient": convolution_gpu.by_shifted_gradient,
    "taps": convolution_gpu.by_taps,
}


def definition(x, gradient, *, kernel_size: int, rate: int):
    """As XLA differentiates the convolution."""
    shape = (kernel_size, kernel_size, x.shape[-1], gradient.shape[-1])
    convolve = partial(plain.atrous_conv, x, rate=rate)
    return jax.linear_transpose(convolve, jax.ShapeDtypeStruct(shape, x.dtype))(gradient)[0]


def cell(form, channels: int, features: int, rate: int, dtype: str, device) -> str:
    """Kernels / largest window / megabytes of temporaries / megabytes moved."""
    here = SingleDeviceSharding(device)
    x, gradient = (
        jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, n), dtype, sharding=here)
        for n in (channels, features)
    )
    compiled = jax.jit(partial(form, kernel_size=3, rate=rate)).lower(x, gradient).compile()
    found = hlo.summary(compiled.as_text(), {})
    megabytes = (aot.memory_of(compiled)["temp"] / 1e6, found["bytes"] / 1e6)
    window = found["largest_window"] or "products"
    return f"{found['kernels']} / {window} / {megabytes[0]:.0f} / {megabytes[1]:.0f}"


def main() -> None:
    (device,) = chips.devices_of(TARGET, 1)
    forms = {"definition": definition, **FORMS}
    print("# Weight gradients of atrous convolutions, compiled for an H100\n")
    print("Made by `experiments/benchmarks/aot_convolutions.py`; nothing ran. Each cell: kernels /")
    print("largest window of a convolution / MB of temporaries / MB moved. 10 maps of 41x41.\n")
    print("| layer | rate | dtype | " + " | ".join(forms) + " |")
    print("| --- " * (3 + len(forms)) + "|")
    for dtype in (jnp.float32, jnp.bfloat16):
        for name, channels, features, rate in LAYERS:
            cells = (cell(f, channels, features, rate, dtype, device) for f in forms.values())
            start = f"{name} {channels} to {features} | {rate} | {jnp.dtype(dtype).name}"
            print(f"| {start} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        main()
    else:  # JAX reads its environment when it is imported
        environment = chips.environment(TARGET)
        sys.exit(subprocess.run([sys.executable, __file__], env=environment).returncode)
