"""Branches of the head that a port never trained: told by what is in them, named, left out."""

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax import segmenter
from deeplab_jax.types import UserError
from deeplab_jax.weights import branches, sources


def port(path, *, head="layer5", channels=64, trained=4, auxiliary=None):
    """A port's file of which `trained` branches have moved from their start; `auxiliary` is how
    many channels layer5 is on beside it."""
    rng = np.random.default_rng(0)
    weights = theirs.as_torch(theirs.draw_units(rng))
    for module, inputs in ((head, channels), ("layer5", auxiliary)):
        if inputs is not None:
            kernels = [rng.normal(0, 0.01, (5, inputs, 3, 3)).astype(np.float32) for _ in range(4)]
            for kernel in kernels[:trained]:
                kernel *= np.arange(1, 6)[:, None, None, None]  # some classes more than others
            pairs = [(kernel, rng.normal(size=5).astype(np.float32)) for kernel in kernels]
            weights |= theirs.name_head(pairs, f"{module}.conv2d_list.{{}}")
    return weight_files.write_pth(path / "w.pth", weights)


@pytest.mark.parametrize("options", [{}, {"head": "layer6", "auxiliary": 32}])
def test_untrained_branches_are_named_and_summed_only_on_request(tmp_path, options):
    path = port(tmp_path, trained=2, **options)
    flat, header = sources.read(path)
    assert header["untrained_branches"] == (2, 3)
    with pytest.raises(UserError, match=r"branches 2 3 of .*--branches 0 1, or .*0 1 2 3"):
        segmenter.load(path)
    everything, told = branches.choose(flat, header, (0, 1, 2, 3))
    assert everything.keys() == flat.keys()
    assert "untrained_branches" not in told
    fresh, told = segmenter.read_weights(path, answers=sources.Answers(fresh_head=True))
    assert fresh.keys() == flat.keys()
    assert "untrained_branches" not in told


def test_the_auxiliary_head_is_listed_as_skipped(tmp_path):
    _, header = sources.read(port(tmp_path, head="layer6", auxiliary=32))
    (names,) = [names for why, names in header["skipped"].items() if "auxiliary" in why]
    roles = ("weight", "bias")
    assert names == [f"layer5.conv2d_list.{i}.{role}" for i in range(4) for role in roles]
    assert header["model"]["alignment"] == "corners"
    assert header["model"]["scales"] == (1.0,)


def test_the_kept_branches_keep_their_rates(tmp_path):
    path = port(tmp_path, trained=2)
    flat, _ = sources.read(path)
    kept, told = segmenter.read_weights(path, answers=sources.Answers(branches=(3, 1)))
    assert told["model"]["aspp_rates"] == (12, 24)
    np.testing.assert_array_equal(kept["head/fc8_2/kernel"], flat["head/fc8_4/kernel"])
    assert "head/fc8_3/kernel" not in kept
    assert told["skipped"][branches.LEFT_OUT] == ["branch 0 (rate 6)", "branch 2 (rate 18)"]


@pytest.mark.parametrize("asked", [(), (0, 4), (1, 1), (-1, 0)])
def test_branches_that_the_head_does_not_have_are_refused(tmp_path, asked):
    with pytest.raises(UserError, match=r"the head has 4 branches, .*give some of 0 1 2 3"):
        branches.choose(*sources.read(port(tmp_path)), asked)


def test_two_heads_on_the_same_features_are_refused(tmp_path):
    """As in networks with two classifiers on res5, which ADVENT does not have."""
    with pytest.raises(UserError, match="layer5 and layer6 on 64 and 64 channels"):
        sources.read(port(tmp_path, head="layer6", auxiliary=64))
    with pytest.raises(UserError, match="have head/fc8_1/kernel of shape"):  # its auxiliary head
        segmenter.load(port(tmp_path, channels=32))


STARTS = {
    "normal": lambda rng, shape: rng.normal(0, 0.01, shape),
    "another deviation": lambda rng, shape: rng.normal(0, 0.05, shape),
    "PyTorch's own": lambda rng, shape: rng.uniform(-0.04, 0.04, shape),
    "truncated": lambda rng, shape: rng.normal(0, 0.01, shape).clip(-0.02, 0.02),
}
TRAINED = {
    "classes of other sizes": lambda kernel: kernel * np.linspace(1, 2, kernel.shape[-1]),
    "taps of other sizes": lambda kernel: kernel * np.linspace(1, 2, 3)[:, None, None, None],
    "classes alike": lambda kernel: kernel + 0.5 * kernel[..., :1],
    "taps alike": lambda kernel: kernel + 0.5 * kernel[:1, :1],
    "one class preferred": lambda kernel: kernel + 0.5 * kernel.std() * (np.arange(5) == 2),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_branch_is_untrained_where_its_numbers_are_independent_draws(start):
    kernel = STARTS[start](np.random.default_rng(8), (3, 3, 256, 5))
    assert branches.is_start(kernel)
    for name, train in TRAINED.items():
        assert not branches.is_start(train(kernel)), name
    assert not branches.is_start(np.zeros_like(kernel))


def test_draws_are_taken_for_trained_in_no_case_of_200():
    rng = np.random.default_rng(10)
    assert all(branches.is_start(rng.normal(0, 0.01, (3, 3, 128, 21))) for _ in range(200))


def test_a_head_of_which_no_branch_is_trained_is_left_as_it_is():
    rng = np.random.default_rng(9)
    flat = {f"head/fc8_{i}/kernel": rng.normal(0, 0.01, (3, 3, 64, 5)) for i in range(1, 5)}
    assert branches.untrained(flat) == ()
    flat["head/fc8_2/kernel"] *= np.arange(1, 6)
    assert branches.untrained(flat) == (0, 2, 3)
