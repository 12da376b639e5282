"""How many photographs a device works on at once."""

import importlib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deeplab_jax import optim, segmenter, train
from deeplab_jax.data import loader
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

GB = 10**9


@pytest.fixture
def train_voc(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("train_voc")


@pytest.fixture
def choose(train_voc, monkeypatch):
    """(preset, options) -> photographs at once on two cards of 16 GB, 3 GB and 2 a photograph."""

    def chosen(preset, *, backend="gpu", devices=2, **options):
        card = SimpleNamespace(
            process_index=0, memory_stats=lambda: {"bytes_limit": 16 * GB, "bytes_in_use": 0}
        )
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        needed = lambda setup: 3 * GB + 2 * GB * setup.config.max_per_device  # noqa: E731
        monkeypatch.setattr(train_voc, "needed_bytes", needed)
        config = replace(PRESETS[preset], **options)
        setup = train_voc.Setup(config, [card] * devices, None, None)
        return train_voc.with_share(setup).config.max_per_device

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


def test_the_update_that_is_measured_has_the_weights_of_the_classes(train_voc, monkeypatch):
    """A program without them would be compiled for its memory alone, and another for training."""
    preset = PRESETS["quickstart"]
    model = replace(preset.model, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=(1,))
    data = replace(preset.data, crop_size=33)
    config = replace(preset, model=model, data=data, batch_size=2, max_per_device=2)
    network = segmenter.network(asdict(model), 3)
    texts = []
    monkeypatch.setattr(
        train, "peak_bytes", lambda step, *shapes: texts.append(step.lower(*shapes).as_text())
    )
    for weights in (None, np.float32([1, 2, 4])):
        setup = train_voc.Setup(
            config, jax.local_devices()[:1], None, network, class_weights=weights
        )
        train_voc.needed_bytes(setup)
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
