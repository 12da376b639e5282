"""How many photographs a device works on at once."""

from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from deeplab_jax import optim, segmenter, setup, train
from deeplab_jax.config import completed
from deeplab_jax.data import loader
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

GB = 10**9


def setup_of(config, devices, **parts):
    """A Setup with parts that are not made from its config."""
    made = setup.Setup(replace(config, workdir=Path("nowhere")))
    vars(made).update({"class_weights": None, "devices": devices, **parts})
    return made


@pytest.fixture
def choose(monkeypatch):
    """(preset, options) -> photographs at once on two cards of 16 GB, 3 GB and 2 a photograph."""

    def chosen(preset, *, backend="gpu", devices=2, **options):
        config = replace(PRESETS[preset], **options)
        share = -(-config.batch_size // devices)

        def needed(found, accumulation):
            return 3 * GB + 2 * GB * -(-share // accumulation)

        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(setup, "memory_of", lambda device: 16 * GB)
        monkeypatch.setattr(setup, "needed_bytes", needed)
        return -(-share // setup_of(config, jax.local_devices()[:devices]).accumulation)

    return chosen


def test_a_share_that_fits_is_worked_on_at_once(choose, capsys):
    assert choose("resnet101_aspp") == 5
    assert "5 of a device's 5 photographs at once" in capsys.readouterr().out


def test_a_share_that_does_not_fit_is_halved(choose):
    assert choose("resnet101_aspp", devices=1) == 5
    assert choose("resnet101_aspp", devices=1, batch_size=30) == 4


def test_the_batch_per_device_ignores_memory_where_the_result_depends_on_it(choose):
    assert choose("small") == 4
    for preset, batch_loss in (("small", None), ("resnet101_aspp", "dice")):
        with pytest.raises(UserError, match="a trained batch norm and a batch loss are computed"):
            choose(preset, devices=1, batch_size=16, batch_loss=batch_loss)


def test_a_batch_loss_is_computed_over_the_whole_share_on_cpus(choose):
    options = {"backend": "cpu", "devices": 1, "batch_size": 10}
    assert choose("resnet101_aspp", **options) == 1
    assert choose("resnet101_aspp", **options, batch_loss="lovasz") == 10


def test_what_is_typed_is_kept(choose):
    assert choose("resnet101_aspp", max_per_device=2) == 2


def test_cpus_keep_the_numbers_of_before(choose):
    of_one_cpu = {"backend": "cpu", "devices": 1}
    presets = ("resnet101_aspp_msc", "vgg16_aspp_l", "small", "quickstart")
    assert [choose(name, **of_one_cpu) for name in presets] == [1, 10, 8, 16]


def test_the_update_that_is_measured_has_the_weights_of_the_classes(monkeypatch):
    """A program without them would be compiled for its memory alone, and another for training."""
    preset = PRESETS["quickstart"]
    model = replace(preset.model, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=(1,))
    data = replace(preset.data, crop_size=33)
    config = replace(preset, model=completed(model), data=data, batch_size=2)
    network = segmenter.network(asdict(config.model), 3)
    texts = []

    def measure(step, *shapes):
        texts.append(step.lower(*shapes).as_text())
        return 1

    monkeypatch.setattr(train, "peak_bytes", measure)
    for weights in (None, np.float32([1, 2, 4])):
        parts = {"model": network, "trained": network, "class_weights": weights}
        setup.needed_bytes(setup_of(config, jax.local_devices()[:1], **parts), 1)
    assert texts[0] != texts[1]


def test_more_photographs_need_more_memory():
    """Measured by the compiler, from shapes alone."""
    model = build(3, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=(1,), scales=(1.0,))
    optimizer = optim.caffe_sgd(optim.poly(0.01, 10))
    state = jax.eval_shape(
        lambda variables: train.init_state(variables, optimizer), train.variable_shapes(model)
    )
    devices = jax.local_devices()[:2]

    def peak(number):
        step = train.make_step(
            model, optimizer, seed=0, batch_size=number, group_size=1, axis_name=train.AXIS
        )
        places = np.full_like(loader.place_samples(number, devices=2, accumulation=1), -1)
        batch = loader.assemble((), places, 33)
        return train.peak_bytes(
            train.on_devices(step, devices), *train.shapes_on(devices, state, batch)
        )

    assert peak(8) > 1.2 * peak(2)
