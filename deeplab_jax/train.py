"""The training step, written for one device, and the loop around it.

A batch on one device is `[accumulation, photographs, ...]`. Sums of the loss and its gradients
run over accumulation steps and devices; see losses.py for why nothing is averaged.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Integer, Key, UInt8

from deeplab_jax import losses
from deeplab_jax.models.deeplab import is_classifier, make_inputs, weight_name
from deeplab_jax.models.layers import Mode
from deeplab_jax.types import IGNORE_LABEL, Batch, padding_pixel

AXIS = "devices"


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes."""

    step: Any
    """Updates done, int32."""
    params: Any
    batch_stats: Any
    """Batch norm's running statistics; for a frozen norm its scale and shift too."""
    optimizer: Any
    skipped: Any
    """Updates without effect, because loss or gradient was not finite, int32."""
    skipped_in_a_row: Any
    """Of those, the ones since the last that had an effect, int32."""


Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_variables(model: nn.Module, key: Key[jax.Array, ""], *, crop_size: int = 65):
    """Parameters and batch statistics from scratch; the sizes of kernels ignore `crop_size`."""
    blank = jnp.zeros((1, crop_size, crop_size, getattr(model, "num_channels", 3)))
    return dict(jax.jit(model.init)(key, blank))


def init_last_layer(model: nn.Module, key: Key[jax.Array, ""]) -> dict:
    """The last layer as `init_variables` starts it; of all other arrays the shapes and types.

    Arrays that given weights replace are not initialised: for ResNet-101 compiling that takes
    longer than reading the weights.
    """

    def last(key):
        leaves = jax.tree_util.tree_leaves_with_path(init_variables(model, key))
        return [leaf for path, leaf in leaves if is_classifier(weight_name(path))]

    drawn = iter(jax.jit(last)(key))
    return jax.tree_util.tree_map_with_path(
        lambda path, shape: next(drawn) if is_classifier(weight_name(path)) else shape,
        variable_shapes(model),
    )


def variable_shapes(model: nn.Module) -> dict:
    """Shapes and types of the variables."""
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))


def state_shapes(model: nn.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and types of the state."""
    return jax.eval_shape(lambda given: init_state(given, optimizer), variable_shapes(model))


def has_frozen_norm(model: nn.Module) -> bool:
    """Whether a batch norm of the network keeps its scale and shift, which no update changes."""
    statistics = variable_shapes(model).get("batch_stats", {})
    names = [weight_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(statistics)]
    return any(name.endswith("/scale") for name in names)


def init_state(variables, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        optimizer=jax.jit(optimizer.init)(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def variables_of(state: TrainState) -> dict:
    """Parameters and batch statistics as arrays of this process alone."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, variables
    )


def crop_inputs(
    image: UInt8[jax.Array, "*b h w channels"],
    labels: Integer[jax.Array, "*b h w"],
    mean_bgr: tuple[float, ...],
) -> Float[jax.Array, "*b h w channels"]:
    """`make_inputs` of training crops, in which padding is exactly the mean pixel, which is 0.

    Padding is void and has the padding_pixel of the mean. A photograph's own void pixels of that
    very colour become the mean too, which moves them by less than a grey level.
    """
    pixel = jnp.array(padding_pixel(mean_bgr), jnp.uint8)
    padding = (labels == IGNORE_LABEL) & (image == pixel).all(-1)
    return jnp.where(padding[..., None], 0, make_inputs(image, mean_bgr))


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    batch_size: int,
    group_size: int,
    axis_name: str | None = None,
    pixel_loss: losses.PixelLoss | None = losses.cross_entropy,
    batch_loss: losses.BatchLoss | None = None,
) -> Step:
    """One update from the device's share of a batch of `batch_size` photographs.

    `model` is a DeepLabV2, or a module with the same `score_maps`, `alignment` and `mean_bgr`.
    The loss of every score map counts: `pixel_loss` of each pixel, normalised over the `group_size`
    photographs that share a normaliser (losses.photograph_weights), plus `batch_loss` of the
    photographs that a device works on at once, averaged over the batch. `axis_name` is AXIS for a
    step that runs `on_devices`; None is a single device.

    An update that is not finite, in its loss, its gradient or what it would make of the state, is
    skipped: it is counted and changes nothing else. So is one whose gradient has a norm that
    float32 does not hold.
    """

    def loss_of(params, batch_stats, batch: Batch, weights, key):
        """The loss of one accumulation step, and the batch statistics after it."""
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.maximum(batch.sample, 0))
        mode = Mode(train=True, axis_name=axis_name, real=batch.sample >= 0, dropout_keys=keys)
        inputs = crop_inputs(batch.image, batch.labels, model.mean_bgr)
        variables = {"params": params, "batch_stats": batch_stats}
        options = {"method": "score_maps", "mutable": ["batch_stats"]}
        maps, changed = model.apply(variables, inputs, mode, **options)
        sizes = [scores.shape[1:3] for scores in maps]
        targets = losses.label_maps(batch.labels, sizes, alignment=model.alignment)
        loss = jnp.zeros(())
        if pixel_loss is not None:
            loss += losses.weighted_loss(maps, targets, weights, pixel_loss)
        if batch_loss is not None:  # crops that are no photographs count as padding, ignored
            real = mode.real[:, None, None]
            seen = jnp.where(real[..., None], inputs, 0)
            given = [jnp.where(real, target, IGNORE_LABEL) for target in targets]
            of_maps = (batch_loss(*pair, seen) for pair in zip(maps, given, strict=True))
            loss += mode.real.sum() / batch_size * cast(jax.Array, sum(of_maps))
        return loss, changed.get("batch_stats", batch_stats)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = _loss_weights(
            model, state, batch, group_size=group_size, batch_size=batch_size, axis_name=axis_name
        )
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, loss, batch_stats = _accumulate(loss_of, state, (batch, weights), key)
        if axis_name is not None:
            gradients, loss = lax.psum((gradients, loss), axis_name)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        changed = {"params": params, "batch_stats": batch_stats, "optimizer": optimizer_state}
        new_state = replace(state, step=state.step + 1, **changed)
        values = {"loss": loss, "gradient_norm": _norm_if_finite(gradients, state, new_state)}
        new_state = _skip_unless_finite(state, new_state, values)
        counts = ("skipped", "skipped_in_a_row")
        return new_state, values | {name: getattr(new_state, name) for name in counts}

    return update


def _accumulate(loss_of: Callable, state: TrainState, parts: Any, key: Key[jax.Array, ""]) -> Any:
    """Sums of the gradients and the loss over the accumulation steps, and the batch statistics
    after the last one."""
    gradients_of = jax.value_and_grad(loss_of, has_aux=True)

    def add(carry, part):
        gradients, loss, batch_stats = carry
        (part_loss, batch_stats), more = gradients_of(state.params, batch_stats, *part, key)
        return (jax.tree.map(jnp.add, gradients, more), loss + part_loss, batch_stats), None

    zero = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), state.batch_stats)
    if jax.tree.leaves(parts)[0].shape[0] == 1:  # XLA compiles bodies of loops worse on CPUs
        return add(zero, jax.tree.map(lambda leaf: leaf[0], parts))[0]
    return lax.scan(add, zero, parts)[0]


def _norm_if_finite(gradients: Any, state: TrainState, new: TrainState) -> jax.Array:
    """Norm of the gradient, or NaN where a new parameter or batch statistic is not finite.

    Momentum that is not finite leaves no parameter finite. Each parameter is read in the same pass
    as its gradient, and the short statistics all in one: checks of their own would be hundreds of
    small kernels on a GPU.
    """

    def sum_of_squares(gradient, param):
        return jnp.where(jnp.isfinite(param), jnp.square(gradient), jnp.nan).sum()

    sums = jax.tree.leaves(jax.tree.map(sum_of_squares, gradients, new.params))
    before, after = map(jax.tree.leaves, (state.batch_stats, new.batch_stats))
    statistics = [leaf for old, leaf in zip(before, after, strict=True) if leaf is not old]
    if statistics:
        together = jnp.concatenate([leaf.ravel() for leaf in statistics])
        sums.append(jnp.where(jnp.isfinite(together), 0, jnp.nan).sum())
    return jnp.sqrt(jnp.stack(sums).sum())


def _skip_unless_finite(state: TrainState, new: TrainState, values: Metrics) -> TrainState:
    """`new`, or where a value is not finite `state` with its integers, which count, from `new`.

    Values that an update never changes, such as a frozen norm, need no selection.
    """
    finite = jnp.isfinite(values["loss"]) & jnp.isfinite(values["gradient_norm"])

    def kept_of(old, leaf):
        counts = jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf if leaf is old or counts else jnp.where(finite, leaf, old)

    kept = jax.tree.map(kept_of, state, new)
    return replace(
        kept,
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )


def _loss_weights(model, state, batch, *, group_size, batch_size, axis_name):
    """For each score map the photographs' weights, `[accumulation, photographs]`."""
    labels = batch.labels.reshape(-1, *batch.labels.shape[2:])
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    sizes = map_sizes(model, variables, labels.shape[1:])
    return [
        losses.photograph_weights(
            losses.count_valid(target).reshape(batch.sample.shape),
            batch.sample,
            group_size=group_size,
            batch_size=batch_size,
            axis_name=axis_name,
        )
        for target in losses.label_maps(labels, sizes, alignment=model.alignment)
    ]


def map_sizes(model: nn.Module, variables: Any, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the score maps that a crop of `size` takes a loss on."""

    def in_training(variables, inputs):
        options = {"method": "score_maps", "mutable": ["batch_stats"]}
        maps, _ = model.apply(variables, inputs, Mode(train=True), **options)
        return maps

    channels = getattr(model, "num_channels", 3)
    inputs = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    maps = jax.eval_shape(in_training, variables, inputs)
    return [m.shape[1:3] for m in maps]


def on_devices(
    step: Step,
    devices: list[jax.Device],
    *,
    keep_state: bool = False,
    compiler_options: Mapping[str, str | bool] | None = None,
) -> Step:
    """The step over several devices: the state is not stacked, the batch is `[devices, ...]`.

    The step names AXIS as its `axis_name`. The state is donated, unless `keep_state`,
    which needs memory for a second one. With several processes each passes the batch of its own
    devices. `compiler_options` are XLA's, for the one shape of batch that such a step takes.
    """
    parallel = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=() if keep_state else 0,
    )
    if not compiler_options:
        return parallel
    programs = []

    def compiled(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if not programs:
            program = parallel.lower(state, batch)
            programs.append(program.compile(compiler_options=dict(compiler_options)))
        return programs[0](state, batch)

    return compiled


def peak_bytes(step: Step, state: TrainState, batch: Batch) -> int:
    """Memory of one device that the compiled step needs, by XLA's own analysis.

    `step` is that of `on_devices`; `state` and `batch` may be shapes. The program is compiled, or
    found in the compilation cache.
    """
    memory = step.lower(state, batch).compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def shapes_on(
    devices: list[jax.Device], state: TrainState, batch: Batch
) -> tuple[TrainState, Batch]:
    """Shapes of the arguments of a step `on_devices`, placed as it takes them."""
    mesh = Mesh(np.array(devices), (AXIS,))

    def placed(tree, *axes):
        shape = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        return jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), tree)

    return placed(state), placed(batch, AXIS)


def replicate(state: TrainState, devices: list[jax.Device]) -> TrainState:
    """The state placed as a step `on_devices` returns it, so that the step compiles only once."""
    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())

    def put(leaf):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

    return jax.tree.map(put, state)


def fit(
    step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    start: int,
    after_step: Callable[[int, TrainState, Metrics], bool | None],
    finished: Callable[[Metrics], bool] = lambda metrics: True,
) -> TrainState:
    """Runs the step over the batches, numbered from `start`.

    `after_step(number, state, metrics)` is called when `number` updates are done; True ends the
    run there. Metrics stay on the device until they are read, so that the next update need not
    wait for this one. `finished(metrics)` may wait for the update; if it returns False, the update
    is dropped and the run ends with the state before it, which the step must then have kept.
    """
    for number, batch in enumerate(batches, start + 1):
        new_state, metrics = step(state, batch)
        if not finished(metrics):
            break
        state = new_state
        if after_step(number, state, metrics):
            break
    return state
