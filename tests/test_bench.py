"""Sweeps, ablations and the scripts that look at runs, on networks of a few thousand weights."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image as PILImage

from deeplab_jax import config as configs
from deeplab_jax import crf, presets, segmenter
from deeplab_jax.data import scenes
from deeplab_jax.models.deeplab import build
from deeplab_jax.ops.convolution import atrous_conv
from deeplab_jax.types import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

COMMON = """--data.root scenes --data.num-scenes 0 --data.crop-size 65 --model.stage-sizes 1 1 1 1
  --model.width 4 --batch-size 4 --max-per-device 4 --num-devices 1 --log-every 1 --num-steps 3
  --save-every 1 --score-untrained False""".split()


def command(*arguments):
    words = ["sweep_aspp.py", "--presets", "quickstart", *map(str, arguments), "--", *COMMON]
    return [sys.executable, str(EXPERIMENTS / words[0]), *words[1:]]


def draw_scenes(folder):
    """The data of a sweep, with fewer scenes for val than a run draws by itself."""
    scenes.write_scenes(folder / "scenes", num_train=12, num_val=4, size=scenes.SIDE, seed=0)


def sweep(*arguments, cwd):
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, what was printed) of a sweep over one set of rates, the second beyond the map."""
    folder = tmp_path_factory.mktemp("bench")
    draw_scenes(folder)
    out = sweep("--rates", "1,9", "--seeds", 0, "--output", "sweep", cwd=folder)
    return folder, out


@pytest.fixture
def scripts(monkeypatch):
    """Modules of experiments by name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_leaves_its_tables_and_figure(swept):
    folder, out = swept
    (run,) = lines(folder / "sweep/runs.csv")
    (row,) = lines(folder / "sweep/table.csv")
    scores = json.loads((folder / "sweep/1_9_seed0/evaluation.json").read_text())
    assert float(run["mean_iou"]) == scores["network"]["mean_iou"]
    assert float(row["mean_iou_after_crf_mean"]) == scores["network + CRF"]["mean_iou"]
    assert run["rates"] == "1, 9"
    assert float(run["training_images_per_second"]) > 0 and "CPU" in run["device"]
    text = (folder / "sweep/table.md").read_text()
    assert f"| 1,9 | 1, 9† | {int(run['parameters']):,} |" in text  # a crop of 65 has a map of 9
    assert "Table 3" in text and "is not shown" in text
    assert "crop 65, 3 updates of 4 photographs." in text
    assert np.asarray(PILImage.open(folder / "sweep/figure.png")).std() > 10
    assert run["command"] in out


def test_rates_and_parameters_are_those_of_the_trained_network(swept, scripts):
    result = scripts("bench").read_result(
        "another label",
        swept[0] / "sweep/1_9_seed0",
        lambda config, model: {"rates": scripts("bench").rates_column(config, model)},
    )
    assert result.settings == {"rates": "1, 9†"}
    variables = segmenter.load(swept[0] / "sweep/1_9_seed0")[1]
    kernels = [name for name in variables["params"]["head"] if name.startswith("fc8_")]
    assert len(kernels) == 2
    assert result.parameters == sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_a_finished_sweep_typed_again_runs_nothing(swept):
    folder, _ = swept
    before = (folder / "sweep/1_9_seed0/log.txt").read_text()
    out = sweep("--rates", "1,9", "--seeds", 0, "--output", "sweep", cwd=folder)
    assert "found finished" in out
    assert (folder / "sweep/1_9_seed0/log.txt").read_text() == before


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_typed_again_gives_its_table(tmp_path):
    arguments = ["--rates", "1,2", "2,4", "--seeds", 0, 1, "--output", "sweep"]
    draw_scenes(tmp_path)
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("sweep/2_4_seed0/checkpoints/[0-9]")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (tmp_path / "sweep/1_2_seed0/log.txt").read_text()
    out = sweep(*arguments, cwd=tmp_path)
    assert "sweep/1_2_seed0: found finished" in out
    assert (tmp_path / "sweep/1_2_seed0/log.txt").read_text() == first
    assert (
        "going on in sweep/2_4_seed0 after update"
        in (tmp_path / "sweep/2_4_seed0/log.txt").read_text()
    )
    found = lines(tmp_path / "sweep/runs.csv")
    assert [(r["rates"], r["seed"]) for r in found] == [
        ("1, 2", "0"), ("1, 2", "1"), ("2, 4", "0"), ("2, 4", "1"),
    ]  # fmt: skip


def test_one_run_that_fails_is_in_the_table_as_failed(swept, scripts, monkeypatch):
    """The other folder belongs to another command."""
    bench, sweep_aspp = scripts("bench"), scripts("sweep_aspp")
    monkeypatch.chdir(swept[0])
    (swept[0] / "sweep/2_seed0").mkdir()
    (swept[0] / "sweep/2_seed0/entry.json").write_text('{"command": "python other.py"}')
    monkeypatch.setattr(bench.sweeps, "find_devices", lambda _: ("CPU", [{}]))
    # The command is compared as it was typed: from the same folder, with the same options.
    options = sweep_aspp.Options(
        presets=("quickstart",), rates=("1,9", "2"), seeds=(0,), output=Path("sweep")
    )
    with pytest.raises(UserError, match="1 of 2 runs failed: sweep/2_seed0: .*python other.py"):
        sweep_aspp.main(options, tuple(COMMON))
    assert "* sweep/2_seed0: failed: " in (swept[0] / "sweep/table.md").read_text()
    assert "| 1,9 |" in (swept[0] / "sweep/table.md").read_text()


def test_mistakes_in_a_sweep_are_answered_before_anything_runs(scripts):
    bench, sweep_aspp = scripts("bench"), scripts("sweep_aspp")
    options = sweep_aspp.Options(presets=("small",), rates=("ASPP-S",))
    with pytest.raises(UserError, match="--model.aspp-rates is set by the table"):
        sweep_aspp.main(options, ("--model.aspp-rates", "3"))
    for wrong in ("ASPP-M", "3,x", "0", ""):
        with pytest.raises(UserError, match="such as 3,6,9"):
            sweep_aspp.rates_of(wrong)
    with pytest.raises(UserError, match="no preset smal;"):
        bench.jobs_of([bench.Entry("a", "smal", ())], options, Path("x"), ())
    with pytest.raises(UserError, match="ASPP-S: no photographs to train on"):
        sweep_aspp.main(options, ())
    quick = partial(sweep_aspp.Options, presets=("quickstart",))
    with pytest.raises(UserError, match="3,6 is asked for twice"):
        sweep_aspp.main(quick(rates=("3,6", "3,6")), ())
    with pytest.raises(UserError, match="nothing to run"):
        sweep_aspp.main(quick(seeds=()), ())
    with pytest.raises(UserError, match="--parallel must be at least 1, got 0"):
        sweep_aspp.main(quick(parallel=0), ())
    with pytest.raises(UserError, match="no option --num-stepz; did you mean --num-steps?"):
        sweep_aspp.main(quick(), ("--num-stepz", "3"))
    ablations = scripts("ablations")
    with pytest.raises(UserError, match="--shorten must be at least 1, got 0"):
        ablations.main(ablations.Options(table="resnet", shorten=0), ())


def test_runs_of_several_presets_are_described_by_all_their_numbers(scripts, tmp_path):
    for name in ("small", "quickstart"):
        config = replace(presets.PRESETS[name], num_steps=1000)
        config = replace(config, data=replace(config.data, train_split="train"))
        record = {"config": configs.to_dict(config), "class_names": ["a", "b"]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(record))
    folders = [tmp_path / "small", tmp_path / "quickstart"]
    sentence, same_data = scripts("bench").describe(folders, scripts("bench").Options())
    assert "from scratch on train" in sentence and not same_data
    assert "crop 161 or 129, 1,000 updates of 8 or 16 photographs." in sentence


def test_a_preset_without_augmentation_has_the_papers_in_that_row(scripts):
    ablations = scripts("ablations")
    table = ablations.resnet("quickstart", ablations.Options(table="resnet"))
    still, scaled = (entry.arguments for entry in table.entries if "LargeFOV" not in entry.label
                     and "ASPP" not in entry.label and "MSC" in entry.label)  # fmt: skip
    assert still != scaled and "1.25" in scaled


LADDERS = ["context", "person_part", "cityscapes"]


@pytest.mark.parametrize("table", ["field_of_view", "learning_rate", "resnet", *LADDERS])
@pytest.mark.parametrize("coco", [None, Path("coco.pth")])
def test_the_rows_of_an_ablation_are_runs_that_differ(scripts, table, coco):
    ablations = scripts("ablations")
    vgg = "vgg16.pth" if coco else None
    options = ablations.Options(table=table, coco_weights=coco, vgg_weights=vgg, shorten=10)
    made = ablations.TABLES[table](None, options)
    rows = {}
    for entry in made.entries:
        config = tyro.cli(
            configs.Config,
            default=presets.PRESETS[entry.preset],
            args=[*entry.arguments, "--data.root", "x", "--weights", "w.pth"],
            config=scripts("cli").STYLE,
        )
        configs.check(config)
        rows[entry.label] = config
    # fresh_head belongs to the start from COCO, as the weights do.
    fields = [repr({**dict(configs.result_fields(c)), "fresh_head": None}) for c in rows.values()]
    if coco is None:
        assert len(set(fields)) == len(made.entries)
    published = set(made.published)
    assert published <= set(rows)
    settings = [made.settings(config, build(**vars(config.model))) for config in rows.values()]
    # The columns tell apart all runs whose options differ; a start from COCO is none of them.
    assert len({tuple(s.values()) for s in settings}) == len(set(fields))


def test_the_ablation_of_policies_is_table_2_shortened(scripts):
    ablations = scripts("ablations")
    entries = ablations.learning_rate("small", ablations.Options(shorten=100)).entries
    parsed = [
        tyro.cli(configs.Config, default=presets.PRESETS["small"], args=list(entry.arguments))
        for entry in entries
    ]
    found = [(c.optim.policy, c.batch_size, c.num_steps) for c in parsed]
    assert found == [
        ("step", 30, 60), ("poly", 30, 60), ("poly", 30, 100), ("poly", 10, 100), ("poly", 10, 200)
    ]  # fmt: skip
    assert {c.optim.step_every for c in parsed} == {20}


def test_the_weights_of_a_row_come_after_those_of_all_rows(scripts):
    bench = scripts("bench")
    entry = bench.Entry("coco", "resnet101_aspp_msc", ("--weights", "coco.pth"))
    ((_, job),) = bench.jobs_of(
        [entry], bench.Options(seeds=(0,)), Path("x"), ("--weights", "imagenet.pth")
    ).items()
    words = job.commands[0]
    assert words.index("imagenet.pth") < words.index("coco.pth")


def test_two_sets_of_rates_on_the_same_parameters_give_different_logits(draw_variables):
    narrow, wide = (
        build(num_classes=3, stage_sizes=(1, 1, 1, 1), width=4, aspp_rates=rates, scales=(1.0,))
        for rates in ((1, 2), (2, 3))
    )
    variables = draw_variables(narrow)
    inputs = jnp.asarray(np.random.default_rng(0).normal(0, 50, (1, 65, 65, 3)), jnp.float32)
    one, other = (np.asarray(jax.jit(m.apply)(variables, inputs)) for m in (narrow, wide))
    assert np.abs(one - other).mean() > 0.1 * np.abs(one).mean()


@pytest.mark.parametrize(("rate", "degenerate"), [(8, False), (9, True), (24, True)])
def test_at_a_rate_of_the_maps_side_a_3x3_is_its_middle_tap(rate, degenerate):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 9, 9, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    whole = atrous_conv(x, kernel, rate=rate)
    middle = atrous_conv(x, kernel[1:2, 1:2])
    assert np.allclose(whole, middle, atol=1e-5) == degenerate


def test_a_report_shows_failures_and_the_crf(swept, scripts, monkeypatch):
    monkeypatch.chdir(swept[0])
    make_report = scripts("make_report")
    # The sweep has run the CRF itself; here another refinement does, which exchanges classes.
    monkeypatch.setattr(crf, "refine", lambda image, probs, params, **_: probs[..., ::-1])
    workdir = swept[0] / "sweep/1_9_seed0"
    make_report.main(make_report.Options(workdir, crf=True, num_photographs=2))
    page = (workdir / "report.html").read_text()
    pictures = sum((workdir / name).exists() for name in make_report.report.PICTURES)
    assert page.count('src="data:image/png;base64,') == pictures == 6
    exchanged = json.loads((workdir / "score_after_crf.json").read_text())["mean_iou"]
    assert f'<td class="number">{exchanged:.4f}</td>' in page
    rows, columns = np.asarray(PILImage.open(workdir / "crf.png")).shape[:2]
    assert columns > 4 * 320 and rows > 2 * 320


def test_a_trimap_curve_ends_at_the_score_of_whole_photographs(swept, scripts, monkeypatch):
    monkeypatch.chdir(swept[0])
    trimap = scripts("trimap")
    workdir = swept[0] / "sweep/1_9_seed0"
    trimap.main(trimap.Options((workdir,), max_width=150))
    found = [float(line["mean_iou"]) for line in lines(workdir / "trimap.csv")]
    # The widest band is the whole photograph.
    assert found[-1] == pytest.approx(json.loads((workdir / "score.json").read_text())["mean_iou"])
    assert len(found) == 150 and (workdir / "trimap.png").exists()


def test_the_field_of_view_of_runs_is_drawn(swept, scripts, capsys, monkeypatch):
    monkeypatch.chdir(swept[0])
    field_of_view = scripts("field_of_view")
    workdirs = (swept[0] / "sweep/1_9_seed0",)
    field_of_view.main(field_of_view.Options(workdirs, num_photographs=1, side=129))
    # conv1, pool1, four 3x3 at rates 1, 1, 2, 4 and strides 4, 8, 8, 8, and rate 9 at stride 8.
    side = 1 + 6 + 4 + 2 * (4 + 8 + 16 + 32 + 72)
    assert f"theoretical {side} pixels" in capsys.readouterr().out
    assert (workdirs[0] / "field_of_view.png").exists()
    with pytest.raises(UserError, match="such as 129"):
        field_of_view.main(field_of_view.Options(workdirs, side=128))


@pytest.mark.parametrize(("rate", "side"), [(1, 161), (9, 289), (99, 513)])
def test_the_picture_holds_the_theoretical_field_up_to_513_pixels(scripts, rate, side):
    models = [build(stage_sizes=(1, 1, 1, 1), aspp_rates=(r,)) for r in (1, rate)]
    theoretical = 1 + 6 + 4 + 2 * (4 + 8 + 16 + 32 + 8 * rate)
    chosen = scripts("field_of_view").choose_side(None, models)
    assert chosen == side
    assert side == 513 or theoretical <= side < theoretical + 16


def test_runs_of_the_same_name_are_told_apart_in_a_figure(scripts, tmp_path):
    named = scripts("splits").named
    one, other = tmp_path / "a/small", tmp_path / "b/small"
    assert named([one]) == {"small": one}
    assert named([one, tmp_path / "c"]) == {"small": one, "c": tmp_path / "c"}
    assert named([one, other]) == {str(one): one, str(other): other}
    with pytest.raises(UserError, match="given twice"):
        named([one, tmp_path / "a/../a/small"])
    with pytest.raises(UserError, match="give the work folder"):
        named([])


class Job:
    def __init__(self, folder):
        self.folder = folder


@pytest.mark.parametrize(
    ("changes", "weights", "reason"),
    [
        ({}, "imagenet.pth", None),
        ({"num_steps": 3}, "imagenet.pth", "3 updates of 10, the paper's are 20,000 of 10"),
        ({}, "coco.pth", "the start is COCO, the paper's is ImageNet"),
        ({}, None, "the start is scratch, the paper's is ImageNet"),
    ],
)
def test_the_papers_numbers_stand_only_beside_runs_like_its_own(
    scripts, tmp_path, monkeypatch, changes, weights, reason
):
    bench, sweep_aspp = scripts("bench"), scripts("sweep_aspp")
    told = {"imagenet.pth": ("ImageNet", ()), "coco.pth": ("ImageNet and MS-COCO", ("a",) * 91)}

    def read_weights(path):
        trained_on, class_names = told[path.name]
        return {}, {"source": {"trained_on": trained_on}, "class_names": class_names}

    monkeypatch.setattr(bench.runs, "read_weights", read_weights)
    bench.start_of.cache_clear()
    config = replace(
        presets.PRESETS["table3_aspp_l"], weights=weights and tmp_path / weights, **changes
    )
    record = {"version": 2, "config": configs.to_dict(config), "class_names": ["a"]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    row = sweep_aspp.PUBLISHED["ASPP-L"]
    table = bench.Table(
        *("", [sweep_aspp.paper_entry("ASPP-L")], lambda config, model: {}),
        published={"ASPP-L": (row.before, row.after)},
        source="",
        starts={"ASPP-L": row.start},
    )
    jobs = {("ASPP-L", 0): Job(tmp_path)}
    found = bench.differences(table, jobs, same_data=True)
    assert found == ({} if reason is None else {"ASPP-L": reason})
    assert "the data are others" in bench.differences(table, jobs, same_data=False)["ASPP-L"]
