"""How many photographs a device works on at once."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_networks import shallow

from deeplab_jax import setup, train
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

GB = 10**9
SHALLOW = shallow()


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


ONE_CPU = {"backend": "cpu", "devices": 1}


@pytest.mark.parametrize(
    ("expected", "preset", "options"),
    [
        (5, "resnet101_aspp", {}),
        (5, "resnet101_aspp", {"devices": 1}),  # 10 do not fit
        (4, "resnet101_aspp", {"devices": 1, "batch_size": 30}),
        (2, "resnet101_aspp", {"max_per_device": 2}),  # typed
        (4, "small", {}),
        (1, "resnet101_aspp_msc", ONE_CPU),
        (10, "vgg16_aspp_l", ONE_CPU),
        (8, "small", ONE_CPU),
        (16, "quickstart", ONE_CPU),
        (10, "resnet101_aspp", {**ONE_CPU, "batch_loss": "lovasz"}),
    ],
)
def test_a_share_is_worked_on_at_once_or_halved_until_it_fits(
    choose, capsys, expected, preset, options
):
    assert choose(preset, **options) == expected
    if not options:
        assert f"{expected} of a device's" in capsys.readouterr().out


@pytest.mark.parametrize(("preset", "batch_loss"), [("small", None), ("resnet101_aspp", "dice")])
def test_memory_does_not_choose_a_share_that_the_result_depends_on(choose, preset, batch_loss):
    with pytest.raises(UserError, match="a trained batch norm and a batch loss are computed"):
        choose(preset, devices=1, batch_size=16, batch_loss=batch_loss)


def test_the_update_that_is_measured_has_the_weights_of_the_classes(monkeypatch):
    """A program without them would be compiled for its memory alone, and another for training."""
    preset = PRESETS["quickstart"]
    config = replace(preset, data=replace(preset.data, crop_size=33), batch_size=2)
    texts = []

    def measure(step, *shapes):
        texts.append(step.lower(*shapes).as_text())
        return 1

    monkeypatch.setattr(train, "peak_bytes", measure)
    for weights in (None, np.float32([1, 2, 4])):
        parts = {"model": SHALLOW, "trained": SHALLOW, "class_weights": weights}
        setup.needed_bytes(setup_of(config, jax.local_devices()[:1], **parts), 1)
    assert texts[0] != texts[1]


def test_more_photographs_need_more_memory():
    """Measured by the compiler, from shapes alone."""
    config = replace(PRESETS["quickstart"], data=replace(PRESETS["quickstart"].data, crop_size=33))
    parts = {"model": SHALLOW, "trained": SHALLOW}

    def peak(number):
        made = setup_of(replace(config, batch_size=number), jax.local_devices()[:2], **parts)
        return setup.needed_bytes(made, 1)

    assert peak(8) > 1.2 * peak(2)
