"""The search for CRF parameters, and the file it leaves."""

import importlib
import json
import math
from functools import partial

import cli
import jax
import numpy as np
import pytest
import search_crf
import tyro
from crf_drawings import two_halves

from deeplab_jax import crf, evaluation
from deeplab_jax.models.deeplab import build
from deeplab_jax.types import UserError

HALVES = [two_halves(seed=seed, ids=(0, 1)) for seed in (0, 1)]
PHOTOGRAPHS = [{"image": image, "labels": labels} for image, labels in HALVES]


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


def test_the_papers_coarse_grid_has_128_combinations():
    tried = search_crf.combinations(search_crf.Grid(), crf.CRFParams(sigma_smoothness=3.0))
    assert len(set(tried)) == 4 * 8 * 4
    assert {p.sigma_xy for p in tried} == {30, 40, 50, 60, 70, 80, 90, 100}
    assert {p.sigma_smoothness for p in tried} == {3.0}


def test_a_finer_grid_never_leaves_the_positive_numbers():
    grid = search_crf.Grid((2.0, 6.0), (10.0,), (1.0, 3.0))
    finer = search_crf.finer(grid, crf.CRFParams(2.0, 10.0, 1.0))
    assert finer == search_crf.Grid((2.0, 4.0), (10.0,), (1.0, 2.0))


def leave_probs(folder):
    """Unsure probabilities, a fifth of them wrong, where the network would leave its own."""
    (folder / "probs").mkdir()
    rng = np.random.default_rng(1)
    for number, item in enumerate(PHOTOGRAPHS):
        wrong = rng.random(item["labels"].shape) < 0.2
        right = np.where(item["labels"] ^ wrong, 0.6, 0.4)
        np.save(search_crf.probs_path(folder, number), np.stack([1 - right, right], -1))


def test_a_search_finds_the_better_parameters_and_goes_on_after_a_cut(tmp_path, capsys):
    leave_probs(tmp_path)
    grid = search_crf.Grid((0.0, 4.0), (20.0,), (20.0,))
    options = search_crf.Options(tmp_path, grid=grid, rounds=1, sigma_smoothness=1.0)
    score = partial(search_crf.mean_iou, tmp_path, PHOTOGRAPHS, [0, 1], crf.refine)
    before = score(None)
    tried = search_crf.run_trials(tmp_path, options, score)
    assert list(tried.values())[1] > max(before, 0.95)
    assert "round 1, trial 2 of 2: w1 4 alpha 20" in capsys.readouterr().out
    lines = (tmp_path / "trials.jsonl").read_text()
    (tmp_path / "trials.jsonl").write_text(lines[:-20])  # killed within the second line

    def refuse(params):
        assert params == list(tried)[1]
        return 0.5

    again = search_crf.run_trials(tmp_path, options, refuse)
    assert list(again.values()) == [next(iter(tried.values())), 0.5]
    search_crf.report(tmp_path, tried, before, num_images=2)
    assert crf.read_params(tmp_path / "params.json") == list(tried)[1]
    assert "| 4 | 20 | 20 | 3 | 1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_trials_are_scored_with_their_parameters(tmp_path):
    leave_probs(tmp_path)
    found = []

    def refine(image, probs, params):
        found.append(params)
        return probs

    search_crf.mean_iou(tmp_path, PHOTOGRAPHS, [0], refine, crf.RESNET101)
    assert found == [crf.RESNET101]


def test_scripts_say_that_the_host_of_a_tpu_refines(monkeypatch, capsys):
    options = cli.RefineOptions()
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
def test_scripts_read_the_options_of_the_crf(name):
    script = importlib.import_module(name)
    typed = "run a.jpg" if name == "predict" else "run"
    typed += " --crf-max-pixels 900 --crf-prune-below 0.01 --crf-normalization per_pixel"
    expected = {"normalization": "per_pixel", "max_pixels": 900, "prune_below": 0.01}
    options = tyro.cli(script.Options, args=f"{typed} --crf-bands 3 0".split())
    assert options.refining((1,)).keywords == {**expected, "bands": (3, 0)}
    options = tyro.cli(script.Options, args=typed.split())
    assert options.refining((1,)).keywords == {**expected, "bands": (1,)}


def test_a_folder_with_another_search_is_refused(tmp_path):
    def remember(number, step=3, **options):
        options = search_crf.Options(tmp_path, num_photographs=number, **options)
        search_crf.remember(tmp_path, options, split="val", step=step)

    remember(5)
    remember(5, rounds=3)
    with pytest.raises(UserError, match="num_photographs 5, and 6"):
        remember(6)
    with pytest.raises(UserError, match="step 3, and 4"):
        remember(5, step=4)


def test_the_network_is_run_once_for_each_photograph(tmp_path, draw_variables):
    model = build(2, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=(1,))
    variables = draw_variables(model)
    (tmp_path / "probs").mkdir()
    np.save(search_crf.probs_path(tmp_path, 0), np.zeros(1))
    how = evaluation.InferenceOptions()
    search_crf.cache_probs(tmp_path, model, variables, PHOTOGRAPHS, [0, 1], how)
    assert np.load(search_crf.probs_path(tmp_path, 0)).shape == (1,)
    found = np.load(search_crf.probs_path(tmp_path, 1))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.sum(-1, dtype=np.float32), 1, atol=1e-3)
