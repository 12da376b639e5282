import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.types import UserError
from deeplab_jax.weights import files, sources

HEADER = {"model": {"aspp_rates": [1, 2]}, "class_names": ["sky", "road"]}


def network(classes=2, *, trained=False, seed=0):
    """Variables of a network of two layers; its batch norm is frozen or trained."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    norm = {"scale": draw(4), "bias": draw(4)}
    conv = {"kernel": draw(3, 3, 2, 4)}
    head = {"fc8_1": {"kernel": draw(1, 1, 4, classes), "bias": draw(classes)}}
    statistics = {"mean": draw(4), "var": draw(4)}
    return {
        "params": {"trunk": {"conv1": conv | (norm if trained else {})}, "head": head},
        "batch_stats": {"trunk": {"conv1": statistics | ({} if trained else norm)}},
    }


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_file_gives_back_arrays_and_header(tmp_path):
    variables = network()
    files.write(tmp_path / "net.safetensors", variables, HEADER)
    arrays, header = sources.read(tmp_path / "net.safetensors")
    assert header == HEADER
    assert_same(arrays, files.flatten(variables))
    assert_same(files.fill(network(seed=1), arrays), variables)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_where_only_the_last_layer_does_not_fit_the_option_for_it_is_named():
    given = files.flatten(network(classes=91))
    aspp = network()
    aspp["params"]["head"]["fc8_2"] = aspp["params"]["head"]["fc8_1"]
    for variables in (network(), aspp):
        with pytest.raises(UserError, match="give --fresh-head to start"):
            files.check(variables, given)
        files.check(variables, given, fresh_head=True)
    with pytest.raises(UserError, match="lack 3 arrays.*; is it the same network"):
        files.check(aspp, {n: a for n, a in given.items() if n != "trunk/conv1/kernel"})


@pytest.mark.parametrize("trained", [False, True])
def test_scale_and_shift_find_their_place_in_a_frozen_or_a_trained_norm(trained):
    given = files.flatten(network(trained=not trained))
    filled = files.fill(network(trained=trained, seed=1), given)
    assert_same(files.flatten(filled), given)
    collection = "params" if trained else "batch_stats"
    assert "scale" in filled[collection]["trunk"]["conv1"]


def test_a_fresh_head_keeps_its_start_and_the_trunk_is_filled():
    given = files.flatten(network(classes=5))
    target = network(classes=2, seed=1)
    filled = files.fill(target, given, fresh_head=True)
    assert_same(filled["params"]["head"], target["params"]["head"])
    np.testing.assert_array_equal(
        filled["params"]["trunk"]["conv1"]["kernel"], given["trunk/conv1/kernel"]
    )


BAD = {
    "a head of other classes": (
        {"head/fc8_1/bias": np.zeros(5, np.float32)},
        r"head/fc8_1/.* \(5,\).*\(2,\).*--fresh-head",
    ),
    "another trunk": (
        {"trunk/conv1/mean": np.zeros(9, np.float32)},
        r"trunk/conv1/mean.*\(9,\).*\(4,\); is it the same",
    ),
    "more": (
        {"trunk/conv9/kernel": np.zeros(1, np.float32)},
        r"hold 1 arrays .* no place for, e\.g\. trunk/conv9/kernel",
    ),
    "less": ({"trunk/conv1/var": None}, r"lack 1 arrays .* e\.g\. trunk/conv1/var"),
}


@pytest.mark.parametrize("kind", BAD)
def test_weights_that_do_not_fit_are_refused_by_name(kind):
    changed, part = BAD[kind]
    given = files.flatten(network()) | changed
    with pytest.raises(UserError, match=part):
        files.fill(network(), {name: a for name, a in given.items() if a is not None})


def test_filled_arrays_have_the_types_of_the_network():
    given = {name: a.astype(np.float64) for name, a in files.flatten(network()).items()}
    kinds = {leaf.dtype for leaf in jax.tree.leaves(files.fill(network(), given))}
    assert kinds == {jnp.dtype("float32")}
