"""The search for CRF parameters, and the file it leaves."""

import importlib
import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from deeplab_jax import crf, evaluation
from deeplab_jax.models.deeplab import build
from deeplab_jax.types import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_a_parameter_file_is_read_as_it_was_written(tmp_path):
    params = crf.CRFParams(4.5, 65.0, 3.0, 2.0, 2.5)
    crf.write_params(tmp_path / "params.json", params)
    assert crf.read_params(tmp_path / "params.json") == params
    assert crf.read_params("vgg16_aspp") == crf.PUBLISHED["vgg16_aspp"]


FIVE = {"appearance_weight": 4, "sigma_xy": 9, "sigma_rgb": 3}
FIVE |= {"smoothness_weight": 3, "sigma_smoothness": 1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "and .* holds {"),
        ('{"sigma_xy": 3}', 'holds {"sigma_xy": 3}'),
        (json.dumps(FIVE | {"sigma_xy": 0}), "sigmas above 0"),
        (json.dumps(FIVE | {"appearance_weight": math.nan}), "finite"),
    ],
)
def test_what_is_no_parameter_file_is_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "params.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        crf.read_params(path)


def test_neither_file_nor_name_is_refused_with_the_names():
    with pytest.raises(UserError, match="vgg16_aspp"):
        crf.read_params("resnet102")


class Photographs(list):
    """Two photographs whose halves differ in colour and class."""

    def __init__(self):
        rng = np.random.default_rng(0)
        labels = np.zeros((24, 32), np.uint8)
        labels[:, 16:] = 1
        for _ in range(2):
            noise = rng.normal(0, 5, (24, 32, 3))
            image = np.clip(60 + 120 * labels[..., None] + noise, 0, 255).astype(np.uint8)
            self.append({"image": image, "labels": labels})


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import search_crf

    return search_crf


def test_the_papers_coarse_grid_has_128_combinations(script):
    tried = script.combinations(script.Grid(), crf.CRFParams(sigma_smoothness=3.0))
    assert len(set(tried)) == 4 * 8 * 4
    assert {p.sigma_xy for p in tried} == {30, 40, 50, 60, 70, 80, 90, 100}
    assert {p.sigma_smoothness for p in tried} == {3.0}


def test_a_finer_grid_never_leaves_the_positive_numbers(script):
    grid = script.Grid((2.0, 6.0), (10.0,), (1.0, 3.0))
    finer = script.finer(grid, crf.CRFParams(2.0, 10.0, 1.0))
    assert finer == script.Grid((2.0, 4.0), (10.0,), (1.0, 2.0))


def leave_probs(script, folder):
    """Unsure probabilities, a fifth of them wrong, where the network would leave its own."""
    (folder / "probs").mkdir()
    rng = np.random.default_rng(1)
    source = Photographs()
    for number, item in enumerate(source):
        wrong = rng.random(item["labels"].shape) < 0.2
        right = np.where(item["labels"] ^ wrong, 0.6, 0.4)
        np.save(script.probs_path(folder, number), np.stack([1 - right, right], -1))
    return source


def test_a_search_finds_the_better_parameters_and_goes_on_after_a_cut(script, tmp_path, capsys):
    source = leave_probs(script, tmp_path)
    grid = script.Grid((0.0, 4.0), (20.0,), (20.0,))
    options = script.Options(tmp_path, grid=grid, rounds=1, sigma_smoothness=1.0)
    score = partial(script.mean_iou, tmp_path, source, [0, 1], crf.refine)
    before = score(None)
    tried = script.run_trials(tmp_path, options, score)
    assert list(tried.values())[1] > max(before, 0.95)
    assert "round 1, trial 2 of 2: w1 4 alpha 20" in capsys.readouterr().out
    lines = (tmp_path / "trials.jsonl").read_text()
    (tmp_path / "trials.jsonl").write_text(lines[:-20])  # killed within the second line

    def refuse(params):
        assert params == list(tried)[1]
        return 0.5

    again = script.run_trials(tmp_path, options, refuse)
    assert list(again.values()) == [next(iter(tried.values())), 0.5]
    script.report(tmp_path, tried, before, num_images=2)
    assert crf.read_params(tmp_path / "params.json") == list(tried)[1]
    assert "| 4 | 20 | 20 | 3 | 1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_trials_are_scored_with_their_parameters(script, tmp_path):
    source, found = leave_probs(script, tmp_path), []

    def refine(image, probs, params):
        found.append(params)
        return probs

    script.mean_iou(tmp_path, source, [0], refine, crf.RESNET101)
    assert found == [crf.RESNET101]


def test_scripts_say_that_the_host_of_a_tpu_refines(script, monkeypatch, capsys):
    options = script.cli.RefineOptions()
    options.refining(None)
    assert not capsys.readouterr().out
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    options.refining(None)
    assert capsys.readouterr().out.count("the host's CPU") == 1

    def no_cpu(backend):
        raise RuntimeError(backend)

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    options.refining(None)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["evaluate_voc", "predict", "search_crf", "make_report"])
def test_scripts_read_the_options_of_the_crf(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script = importlib.import_module(name)
    typed = "run a.jpg" if name == "predict" else "run"
    typed += " --crf-max-pixels 900 --crf-prune-below 0.01 --crf-normalization per_pixel"
    expected = {"normalization": "per_pixel", "max_pixels": 900, "prune_below": 0.01}
    options = tyro.cli(script.Options, args=f"{typed} --crf-bands 3 0".split())
    assert options.refining((1,)).keywords == {**expected, "bands": (3, 0)}
    options = tyro.cli(script.Options, args=typed.split())
    assert options.refining((1,)).keywords == {**expected, "bands": (1,)}


def test_a_folder_with_another_search_is_refused(script, tmp_path):
    script.remember(tmp_path, script.Options(tmp_path, num_photographs=5), split="val", step=3)
    script.remember(
        tmp_path, script.Options(tmp_path, num_photographs=5, rounds=3), split="val", step=3
    )
    with pytest.raises(UserError, match="num_photographs 5, and 6"):
        script.remember(tmp_path, script.Options(tmp_path, num_photographs=6), split="val", step=3)
    with pytest.raises(UserError, match="step 3, and 4"):
        script.remember(tmp_path, script.Options(tmp_path, num_photographs=5), split="val", step=4)


def test_the_network_is_run_once_for_each_photograph(script, tmp_path, draw_variables):
    model = build(2, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=(1,))
    variables = draw_variables(model)
    (tmp_path / "probs").mkdir()
    np.save(script.probs_path(tmp_path, 0), np.zeros(1))
    how = evaluation.InferenceOptions()
    script.cache_probs(tmp_path, model, variables, Photographs(), [0, 1], how)
    assert np.load(script.probs_path(tmp_path, 0)).shape == (1,)
    found = np.load(script.probs_path(tmp_path, 1))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.sum(-1, dtype=np.float32), 1, atol=1e-3)
