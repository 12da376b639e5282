"""Stochastic gradient descent as the paper's Caffe solver does it.

    g <- g + decay_multiplier * weight_decay * w
    v <- momentum * v + rate * rate_multiplier * g
    w <- w - v

The learning rate stands before the momentum buffer; PyTorch and optax's own sgd put it after,
which is another method as soon as the rate decays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from deeplab_jax.choices import MomentumOrder, Policy
from deeplab_jax.models.deeplab import is_classifier, weight_name


def poly(learning_rate: float, num_steps: int, *, power: float = 0.9) -> optax.Schedule:
    """learning_rate * (1 - step / num_steps) ** power (Section 4.1.2).

    >>> [round(float(poly(1.0, 4, power=1.0)(step)), 2) for step in (0, 1, 4)]
    [1.0, 0.75, 0.0]
    """
    return optax.polynomial_schedule(learning_rate, 0.0, power, num_steps)


def step(learning_rate: float, *, every: int, gamma: float = 0.1) -> optax.Schedule:
    """learning_rate * gamma ** (step // every)."""
    return optax.exponential_decay(learning_rate, every, gamma, staircase=True)


def rate_multipliers(params, *, classifier_multiplier: float = 10.0):
    """Tree of learning-rate factors: 1, times 10 in the classifier (Section 4.1.1), 2 for biases
    (the release).

    Scales and shifts of a trained batch norm have 1: in Caffe a Scale layer has no doubled bias.
    """

    def multiplier(path, _):
        name, layer = weight_name(path), params
        for key in name.split("/")[:-1]:
            layer = layer[key]
        plain_bias = name.endswith("/bias") and "scale" not in layer
        return (classifier_multiplier if is_classifier(name) else 1.0) * (1.0 + plain_bias)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def decay_mask(params):
    """Tree of booleans: kernels decay, biases and batch norm do not."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: weight_name(path).endswith("/kernel"), params
    )


def caffe_sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    classifier_multiplier: float = 10.0,
    momentum_order: MomentumOrder = "caffe",
) -> optax.GradientTransformation:
    """The solver of this module's docstring; `pytorch` moves the rate behind the momentum."""

    def multiplied(updates, params):
        factors = rate_multipliers(params, classifier_multiplier=classifier_multiplier)
        return jax.tree.map(jnp.multiply, updates, factors)

    rate = optax.chain(optax.stateless(multiplied), optax.scale_by_schedule(schedule))
    trace = optax.trace(momentum)
    order = (rate, trace) if momentum_order == "caffe" else (trace, rate)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask), *order, optax.scale(-1.0)
    )


def solver(
    num_steps: int,
    *,
    policy: Policy,
    learning_rate: float,
    power: float,
    step_every: int,
    gamma: float,
    ema_decay: float = 0.0,
    make_optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None,
    **options: Any,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule of the learning rate, and `caffe_sgd` by it; the other options are its own.

    `make_optimizer` gives another optimizer for the schedule. With an `ema_decay` the optimizer is
    `averaged`.
    """
    schedule = {
        "poly": poly(learning_rate, num_steps, power=power),
        "step": step(learning_rate, every=step_every, gamma=gamma),
    }[policy]
    optimizer = make_optimizer(schedule) if make_optimizer else caffe_sgd(schedule, **options)
    return schedule, averaged(optimizer, ema_decay) if ema_decay else optimizer


class Averaged(NamedTuple):
    """State of an `averaged` optimizer."""

    inner: Any
    """State of the optimizer that makes the updates."""
    average: Any
    """The averaged parameters, a tree like the parameters."""
    share: Float[jax.Array, ""]
    """Weight of the parameters in the next average: 1, 1/2, 1/3, ..., and at least 1 - decay."""


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The same updates, and in the state an exponential moving average (EMA) of the parameters.

    average <- (1 - share) * average + share * parameters, taken after each update, with
    share = max(1 - decay, 1 / t) at update t. So the average is the plain mean over the first
    1 / (1 - decay) updates and holds nothing of the start (Tarvainen and Valpola, mean teacher,
    arXiv 1703.01780, let the decay grow in the same way). `decay` is at least 0 and less than 1.
    """

    def init(params):
        average = jax.tree.map(jnp.copy, params)
        return Averaged(optimizer.init(params), average, jnp.ones((), jnp.float32))

    def update(updates, state, params: Any = None):
        updates, inner = optimizer.update(updates, state.inner, params)
        share = state.share
        average = jax.tree.map(
            lambda old, new: (1 - share) * old + share * new,
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, Averaged(inner, average, jnp.maximum(1 - decay, share / (1 + share)))

    return optax.GradientTransformation(init, update)


def average_of(optimizer_state: Any) -> Any | None:
    """The averaged parameters in the state of an `averaged` optimizer; None for another's."""
    return optimizer_state.average if isinstance(optimizer_state, Averaged) else None
