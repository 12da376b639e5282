import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax import optim

MULTIPLIERS = {  # of the learning rate, of the decay; Section 4.1.1, the release
    "trunk/conv1/kernel": (1, 1),
    "trunk/conv1/bias": (2, 0),
    "head/fc6_1/kernel": (1, 1),
    "head/fc6_1/bias": (2, 0),
    "head/fc8_1/kernel": (10, 1),
    "head/fc8_1/bias": (20, 0),
    "trunk/conv2/kernel": (1, 1),
    "trunk/conv2/scale": (1, 0),  # a trained batch norm: ours
    "trunk/conv2/bias": (1, 0),
}
SOLVER = {"momentum": 0.9, "decay": 0.1}
RATES = [0.5, 0.25]


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, 3)) for name in MULTIPLIERS}


def nested(flat):
    return unflatten_dict({name: jnp.float32(a) for name, a in flat.items()}, sep="/")


def after_two_updates(**options):
    """The package's parameters by name, from gradients drawn at random."""
    solver = optim.caffe_sgd(
        optax.piecewise_constant_schedule(RATES[0], {1: RATES[1] / RATES[0]}),
        momentum=SOLVER["momentum"],
        weight_decay=SOLVER["decay"],
        **options,
    )
    params = nested(draw(0))
    state = solver.init(params)
    for seed in (1, 2):
        updates, state = solver.update(nested(draw(seed)), state, params)
        params = optax.apply_updates(params, updates)
    return flatten_dict(params, sep="/")


def by_hand(**changes):
    options = {**SOLVER, "rates": RATES, "multipliers": MULTIPLIERS, **changes}
    return reference.sgd(draw(0), [draw(1), draw(2)], **options)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in MULTIPLIERS:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("order", ["caffe", "pytorch"])
def test_two_updates_are_those_by_hand_in_this_order_alone(order):
    found = after_two_updates(momentum_order=order)
    assert_equal(found, by_hand(rate_first=order == "caffe"))
    other = by_hand(rate_first=order != "caffe")
    assert all(np.abs(found[name] - other[name]).max() > 1e-2 for name in MULTIPLIERS)


def test_the_classifier_multiplier_is_an_option():
    mild = {n: (rate / 10 if "fc8" in n else rate, d) for n, (rate, d) in MULTIPLIERS.items()}
    assert_equal(after_two_updates(classifier_multiplier=1.0), by_hand(multipliers=mild))


def test_poly_ends_at_zero_and_step_drops_after_every_2000_updates():
    schedule = optim.poly(1e-3, 20_000)
    assert float(schedule(0)) == pytest.approx(1e-3)
    for t in (1, 7_000, 19_999):
        expected = 1e-3 * (1 - t / 20_000) ** 0.9
        assert float(schedule(t)) == pytest.approx(expected, rel=1e-3)  # 1 - t / T in float32
    assert float(schedule(20_000)) == 0
    schedule = optim.step(1e-3, every=2000, gamma=0.1)
    found = [float(schedule(t)) for t in (0, 1999, 2000, 3999, 4000, 5999)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.75, 0.999])
def test_the_average_is_the_recursion_over_the_parameters_after_each_update(decay):
    plain = optim.caffe_sgd(optax.constant_schedule(0.1), weight_decay=0.1)
    averaging = optim.averaged(plain, decay)
    params, expected = nested(draw(0)), draw(0)
    state, plain_state = averaging.init(params), plain.init(params)
    for t in range(1, 9):
        updates, state = averaging.update(nested(draw(t)), state, params)
        wanted, plain_state = plain.update(nested(draw(t)), plain_state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, wanted)
        params = optax.apply_updates(params, updates)
        kept = min(decay, 1 - 1 / t)
        for name, array in flatten_dict(params, sep="/").items():
            expected[name] = kept * expected[name] + (1 - kept) * array
        assert_equal(flatten_dict(optim.average_of(state), sep="/"), expected)
    assert optim.average_of(plain_state) is None
