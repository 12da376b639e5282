"""Many runs from one command: the tables of sweep.py and sweep_aspp.py, and their processes."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import make_report
import numpy as np
import pytest
import sweep
import sweep_aspp
from drawn_voc import draw_voc
from PIL import Image as PILImage
from runs_with_faults import is_alive, run_script, start_script, wait_until

from deeplab_jax import config as configs
from deeplab_jax import paper, presets, segmenter, sweeps, workdir
from deeplab_jax.data import scenes
from deeplab_jax.types import UserError

COMMON = """--data.root scenes --data.num-scenes 0 --data.crop-size 65 --model.stage-sizes 1 1 1 1
  --model.width 4 --batch-size 4 --max-per-device 4 --num-devices 1 --log-every 1 --num-steps 3
  --save-every 1""".split()
SMALL = """--model.width 1 --model.head-width 4 --num-steps 2 --batch-size 2 --data.crop-size 33
  --save-every 1 --log-every 1 --eval.pad-to 41""".split()
TIMED = sweep.seconds_a_photograph
RUN = Path("sweep/quickstart_1_9_seed0")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, what was printed) of a sweep over one set of rates, the second beyond the map."""
    folder = tmp_path_factory.mktemp("sweep")
    scenes.write_scenes(folder / "scenes", num_train=12, num_val=4, size=scenes.SIDE, seed=0)
    words = "--presets quickstart --seeds 0 --output sweep --trimap 150".split()
    words += ["--rates", "1 9", "--", *COMMON]
    return folder, run_script("sweep_aspp.py", *words, cwd=folder)


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_leaves_its_table_and_figures(swept):
    folder, out = swept
    (run,) = lines(folder / "sweep/runs.csv")
    scores = json.loads((folder / RUN / "evaluation.json").read_text())
    assert float(run["mean_iou"]) == scores["network"]["mean_iou"]
    assert float(run["mean_iou_after_crf"]) == scores["network + CRF"]["mean_iou"]
    assert run["model.aspp_rates"] == "1, 9"
    assert float(run["training_images_per_second"]) > 0 and "CPU" in run["device"]
    text = (folder / "sweep/table.md").read_text()
    # conv1, pool1, four 3x3 at rates 1, 1, 2, 4 and strides 4, 8, 8, 8, and rate 9 at stride 8
    field, receptive = 8 * 2 * 9 + 32, 1 + 6 + 4 + 2 * (4 + 8 + 16 + 32 + 72)
    shown = f"| quickstart 1 9 | 1, 9† | {field} | {receptive} | {int(run['parameters']):,} |"
    assert shown in text  # a crop of 65 has a map of 9
    assert "Trained on train (12 photographs) and scored on val (4 photographs) of scenes." in text
    for name in ("figure.png", "trimap.png"):
        assert np.asarray(PILImage.open(folder / "sweep" / name)).std() > 10
    assert run["command"] in out
    params = segmenter.load(folder / RUN).variables["params"]
    assert int(run["parameters"]) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len([name for name in params["head"] if name.startswith("fc8_")]) == 2
    # The widest band of a trimap is the whole photograph.
    bands = [r["mean_iou"] for r in lines(folder / RUN / "trimap.csv") if r["crf"] == "False"]
    assert len(bands) == 150
    assert float(bands[-1]) == pytest.approx(scores["network"]["mean_iou"])


def test_typed_again_a_sweep_runs_what_is_missing_and_tells_what_failed(swept, capsys, monkeypatch):
    """The other folder belongs to another command."""
    monkeypatch.chdir(swept[0])
    before = (RUN / "log.txt").read_text()
    other = Path("sweep/quickstart_2_seed0")
    other.mkdir()
    (other / "entry.json").write_text('{"command": "python other.py"}')
    monkeypatch.setattr(sweep.sweeps, "find_devices", lambda _: ("CPU", [{}]))
    # The command is compared as it was typed: from the same folder, with the same options.
    options = sweep_aspp.Options(
        *(tuple(COMMON), None, ("quickstart",)),
        rates=("1 9", "2"),
        seeds=(0,),
        output=Path("sweep"),
        trimap=150,
    )
    with pytest.raises(UserError, match=f"1 of 2 runs failed: {other}: .*python other.py"):
        sweep_aspp.main(options)
    assert "found finished" in capsys.readouterr().out
    assert (RUN / "log.txt").read_text() == before
    text = Path("sweep/table.md").read_text()
    assert f"* {other}: failed: " in text and "| quickstart 1 9 |" in text


def test_a_report_shows_failures_and_the_crf(swept, monkeypatch):
    monkeypatch.chdir(swept[0])
    make_report.main(make_report.Options(RUN, crf=True, num_photographs=2))
    page = (RUN / "report.html").read_text()
    pictures = sum((RUN / name).exists() for name in make_report.report.PICTURES)
    assert page.count('src="data:image/png;base64,') == pictures
    after = json.loads((RUN / "score_after_crf.json").read_text())["mean_iou"]
    assert f'<td class="number">{after:.4f}</td>' in page
    rows, columns = np.asarray(PILImage.open(RUN / "crf.png")).shape[:2]
    assert columns > 4 * 320 and rows > 2 * 320


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_typed_again_gives_its_table(tmp_path):
    scenes.write_scenes(tmp_path / "scenes", num_train=12, num_val=4, size=scenes.SIDE, seed=0)
    words = ["sweep.py", "--vary", "model.aspp-rates", "1 2", "2 4", "--seeds", 0, 1]
    words += ["--output", "sweep", "--", *COMMON]
    killed = start_script(*words, cwd=tmp_path)
    first, second = (tmp_path / f"sweep/aspp-rates_{r}_seed0" for r in ("1_2", "2_4"))
    wait_until(lambda: list(second.glob("checkpoints/[0-9]")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    log = (first / "log.txt").read_text()
    assert f"{first.relative_to(tmp_path)}: found finished" in run_script(*words, cwd=tmp_path)
    assert (first / "log.txt").read_text() == log
    assert f"going on in {second.relative_to(tmp_path)} after" in (second / "log.txt").read_text()
    found = [(r["model.aspp_rates"], r["seed"]) for r in lines(tmp_path / "sweep/runs.csv")]
    assert found == [("1, 2", "0"), ("1, 2", "1"), ("2, 4", "0"), ("2, 4", "1")]


def test_every_preset_is_trained_with_every_combination_of_the_values(tmp_path):
    varied = [["--model.aspp_rates", "1 2", "2 4"], ["num-steps", "5"]]
    entries = sweep.entries_of(["small", "vgg16_aspp_l"], list(map(sweep.read_varied, varied)))
    *others, last = entries
    assert [entry.preset for entry in others] == ["small", "small", "vgg16_aspp_l"]
    assert last.label == "vgg16_aspp_l aspp-rates 2 4, num-steps 5"
    job = sweep.make_job(last, 7, sweep.Options(output=tmp_path, crf=False))
    assert job.folder.name == "vgg16_aspp_l_aspp-rates_2_4_num-steps_5_seed7"
    train = " ".join(job.commands[0])
    assert "vgg16_aspp_l --model.aspp-rates 2 4 --num-steps 5 --seed 7" in train


SCENES = ("--data.num-scenes", "9")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vary": (("batch-size",),)}, "--vary needs an option and values"),
        ({"vary": (("seed", "1", "2"),)}, "--vary seed: a sweep sets this itself"),
        ({"vary": (("batch-size", "5", "5"),)}, "batch-size 5 is asked for twice"),
        (
            {"vary": (("batch-size", "5", "4"),), "common": (*SCENES, "--batch_size=3")},
            "--batch-size is set by the table: take it out from behind --",
        ),
        ({"presets": ("smal",)}, "there is no preset smal; did you mean small?"),
        ({"presets": ("small",)}, "small: no photographs to train on"),
        ({"seeds": (), "parallel": 0}, "--parallel must be at least 1, got 0"),
        ({"table": "3", "presets": ("small",)}, "leave out --presets and --vary"),
        ({"table": "9"}, "give --root FOLDER, where Cityscapes, train to val is"),
        ({"table": "5", "root": Path("x"), "crf": False}, "by the CRF: leave out --no-crf"),
        ({"common": (*SCENES, "--num-stepz", "3")}, "num-stepz"),
        ({"common": SCENES, "rates": ("ASPP-M",)}, "ASPP-M"),
        ({"common": SCENES, "rates": ("3,x",)}, "3,x"),
        (
            {"presets": ("resnet101",), "common": SCENES},
            "resnet101: from scratch a frozen batch norm",
        ),
        (
            {"table": "3", "root": Path("x"), "vgg": "vgg16.pth"},
            "LargeFOV: there is no file or folder vgg16.pth",
        ),
        (
            {"table": "4", "root": Path("x"), "coco": "init.caffemodel"},
            "MSC, COCO: there is no file or folder init.caffemodel",
        ),
    ],
)
def test_a_mistake_is_answered_before_anything_runs(
    tmp_path, monkeypatch, capsys, fields, sentence
):
    monkeypatch.chdir(tmp_path)
    script = sweep_aspp if "rates" in fields else sweep
    with pytest.raises((UserError, SystemExit)) as raised:
        script.main(script.Options(**fields))
    assert sentence in f"{raised.value} {capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Updates that take 0.5 s a photograph."""
    monkeypatch.setattr(sweep, "seconds_a_photograph", lambda *_: 0.5)


def planned(capsys, root, table, **fields):
    """What --dry-run prints, and its commands as words."""
    fields = {"vgg": "none", "resnet": "none", "dry_run": True, **fields}
    common = ("--model.norm", "trained") if table in "456789" else ()
    sweep.main(sweep.Options(common, table, root=root, **fields))
    out = capsys.readouterr().out
    return out, [line.split() for line in out.splitlines() if line.startswith("  python ")]


def value_of(words, option):
    return words[words.index(option) + 1]


@pytest.mark.parametrize("table", list("1234679"))
def test_the_rows_of_a_table_are_trained_searched_and_scored_as_the_paper(
    tmp_path, monkeypatch, capsys, table
):
    coco = tmp_path / "coco.safetensors"
    root = draw_voc(tmp_path / "voc")
    monkeypatch.setattr(sweep, "start_of", lambda weights: ("COCO", ""))
    out, commands = planned(capsys, root, table, coco=str(coco))
    by_script = {
        name: [w for w in commands if name in w[1]] for name in ("train", "search", "eval")
    }
    rows = paper.rows(table)
    assert [w[2] for w in by_script["train"]] == [row.preset for row in rows]
    refined = [row.preset for row in rows if row.after is not None]
    assert [Path(w[2]).name.removesuffix("_seed0") for w in by_script["search"]] == refined
    for row, words in zip(rows, by_script["eval"], strict=True):
        assert f"the paper has {row.before:g} before the CRF" in out
        assert ("--crf" in words) == (row.after is not None)
        if row.after is not None:
            assert value_of(words, "--crf-normalization") == "per_pixel"
            assert value_of(words, "--crf-params") == f"{words[2]}/crf/params.json"
    for row, words in zip(rows, by_script["train"], strict=True):
        assert ("--weights" in words) == (row.start == "COCO")
        config = presets.PRESETS[row.preset]
        assert config.fresh_head == (row.start == "COCO")
        assert config.model.alignment in ("corners", "corners_v1")
        for guess in row.guesses:
            assert f"  guess: {guess}" in out
    assert "download" not in out and "disk: about" in out


@pytest.mark.parametrize("table", ["5", "8"])
def test_a_row_of_a_test_server_scores_nothing_and_keeps_the_crf_of_its_first_stage(
    tmp_path, monkeypatch, capsys, table
):
    monkeypatch.setattr(sweep, "start_of", lambda weights: ("COCO", ""))
    root = draw_voc(tmp_path)
    # The lists of VOC name the splits of Cityscapes, too, as far as a plan asks for them.
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_with_coarse.txt").write_text("a\n")
    out, commands = planned(capsys, root, table, coco="coco.safetensors")
    assert not [words for words in commands if "evaluate_voc.py" in words[1]]
    for row in paper.rows(table):
        own = [words for words in commands if any(f"/{row.preset}_seed0" in w for w in words)]
        train = next(words for words in own if words[2] == row.preset)
        predicted = [words for words in own if "predict.py" in words[1]]
        assert len(predicted) == (row.before is not None) + (row.after is not None)
        assert {value_of(words, "--submission") for words in predicted} == {row.server}
        if table == "5":
            first = presets.PRESETS[row.preset].weights.name
            assert value_of(train, "--weights").endswith(f"/{first}_seed0")
            assert commands.index(train) > commands.index(
                next(words for words in commands if words[2] == first)
            )
        if row.after is not None:
            searched = Path(value_of(predicted[-1], "--crf-params")).parent.parent
            assert searched.name == f"{first if table == '5' else row.preset}_seed0"
            assert value_of(predicted[-1], "--crf-normalization") == "per_pixel"
        assert f"(test server of {row.server})" in out


def test_rows_that_cannot_be_trained_are_named_with_the_reason(tmp_path, capsys):
    out, commands = planned(capsys, draw_voc(tmp_path), "4")
    for row in paper.rows("4")[2:]:
        assert f"{row.label}: left out: it starts from MS-COCO: give --coco FILE" in out
    assert len([words for words in commands if "train_voc.py" in words[1]]) == 2
    out, _ = planned(capsys, tmp_path, "8")
    assert "the same, coarse masks too: left out:" in out
    assert "has no split train_with_coarse" in out


def test_what_a_table_has_to_download_is_in_the_plan(tmp_path, capsys):
    out, _ = planned(capsys, tmp_path / "elsewhere", "3")
    assert "download voc_aug to" in out and "voc_test" not in out
    for name in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz"):  # archives will do
        (tmp_path / name).touch()
    out, _ = planned(capsys, tmp_path, "5")
    assert "download voc_test to" in out and "voc_aug" not in out


def test_updates_are_timed_on_this_machine():
    entry = sweep.Entry("x", "table3_large_fov")
    shallow = "--model.stage-sizes 1 1 1 1 1 --data.num-scenes 3".split()
    config = sweep.check(entry, sweep.Options((*SMALL, *shallow)))
    assert config.num_steps == 2
    assert 0 < TIMED(config.model, config.data.crop_size) < 60


def test_weights_of_torchvision_are_a_listed_difference():
    published = {"resnet101": "MSRA's ResNet-101-model", "vgg16": "VGG_ILSVRC_16_layers"}
    for network, name in published.items():
        kind, difference = sweep.start_of(Path(f"imagenet-{network}"))
        assert kind == "ImageNet" and f"{name}.caffemodel" in difference
        assert "rates 1 and 2 in the first 3x3 of res4 and res5" in difference
    assert sweep.start_of(None) == ("scratch", "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"num_steps": 3}, "num_steps is 3, the paper's"),
        ({"start": "COCO"}, "the start is COCO, the paper's is ImageNet"),
        ({"start": "scratch"}, "the start is scratch"),
        ({"train_aug": 1464}, "the data are others than PASCAL VOC"),
        ({"search": 0}, "after the CRF not beside the paper"),
        ({"crf": False}, "after the CRF not beside the paper"),
        ({"crf_normalization": "symmetric"}, "after the CRF not beside the paper"),
        ({"eval": configs.EvalConfig(scales=(1.0, 1.25))}, "eval.scales is (1.0, 1.25), the"),
    ],
)
def test_the_papers_numbers_stand_only_beside_runs_like_its_own(
    tmp_path, monkeypatch, changed, reason
):
    its = {"num_steps": 20_000, "start": "ImageNet", "train_aug": 10_582, **changed}
    monkeypatch.setattr(sweep, "start_of", lambda weights: (its["start"], "another file"))
    row = paper.rows("3")[2]
    config = replace(presets.PRESETS[row.preset], seed=5, num_steps=its["num_steps"])
    config = replace(config, model=configs.completed(config.model))
    config = replace(config, eval=changed.get("eval", config.eval))
    sizes = {"train_aug": its["train_aug"], "val": 1449}
    workdir.record_run(tmp_path, config, config, tuple(map(str, range(21))), split_sizes=sizes)
    refined = {"crf": True, "search": 100, "crf_normalization": "per_pixel"}
    options = sweep.Options(**{name: changed.get(name, value) for name, value in refined.items()})
    entry = sweep.Entry(row.label, row.preset, (), row)
    numbers, told = sweep.beside(entry, tmp_path, options)
    expected = {None: (68.96, 71.57), "after the CRF not beside the paper": (68.96, None)}
    assert numbers == expected.get(reason, (None, None))
    assert reason is None or any(reason in line for line in told)
    assert "differs: another file" in told
    assert [line for line in told if line.startswith("guess")]


def test_rows_of_a_paper_among_presets_start_from_its_weights(tmp_path):
    (entry,) = sweep.entries_of(["table3_aspp_l"], [])
    options = sweep.Options(root=tmp_path, vgg="vgg.pth", output=tmp_path)
    words = sweep.make_job(entry, 0, options).commands[0]
    assert value_of(words, "--weights") == "vgg.pth"
    given = replace(options, common=("--weights", "mine.pth"), crf=False)
    assert "vgg.pth" not in sweep.make_job(entry, 0, given).commands[0]
    city, test = sweep.entries_of(["table9_vgg16_half", "test_vgg16"], [])
    assert (city.row.table, test.row.table) == ("9", "5")  # val before a server
    first, second, predict = sweep.make_job(test, 0, given).commands
    assert value_of(first, "--weights") == "mine.pth"
    last = second[len(second) - second[::-1].index("--weights")]
    assert last == str(tmp_path / "table3_aspp_l_seed0")  # the last of an option counts
    assert "predict.py" in predict[1]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "start"), [("3", "--vgg"), ("4", "--resnet"), ("5", "--vgg")])
def test_a_table_is_made_by_a_command_that_is_killed_and_typed_again(tmp_path, table, start):
    root, out = draw_voc(tmp_path / "voc"), tmp_path / "out"
    words = ["sweep.py", "--table", table, "--root", root, start, "none", "--search", 1]
    words += ["--output", out, "--", *SMALL]
    words += "--model.stage-sizes 1 1 1 1 --model.norm trained".split() * (table == "4")
    killed = start_script(*words, cwd=tmp_path)
    wait_until(lambda: list(out.glob("*/checkpoints/1")), killed)
    killed.kill()
    killed.communicate()
    run_script(*words, cwd=tmp_path)
    text = (out / "table.md").read_text()
    rows = [row for row in paper.rows(table) if row.start == "ImageNet"]
    for row in rows:
        if row.server:
            stage = out / f"{row.preset}_seed0"
            assert (stage / f"submission{'_crf' * (row.after is not None)}/results.tar").exists()
            assert f"{row.label}: {stage}" in text and "beside its answer alone" in text
            assert not (stage / "evaluation.json").exists()
            assert not (stage / "score.json").exists() and (stage / "report.html").exists()
            assert all(f"{row.label}: guess: {guess}" in text for guess in row.guesses)
            weights = workdir.read_run(stage).config.weights
            assert weights.name == f"{presets.PRESETS[row.preset].weights.name}_seed0"
        else:
            assert f"| {row.label} |" in text
            assert "all rows: not beside the paper: the data are others" in text
    assert "paper %" not in text
    if table != "3":
        assert text.count("left out: it starts from MS-COCO") == len(paper.rows(table)) - len(rows)


WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def job(folder, *programs, text="done"):
    """Python programs, run one after another; the last one writes result.txt."""
    last = (sys.executable, "-c", WRITE, str(folder / "result.txt"), text)
    commands = [(sys.executable, "-c", program) for program in programs]
    return sweeps.Job(folder, (*commands, last), "result.txt")


def run(*jobs, slots=({},), **options):
    said = []
    return sweeps.run(jobs, slots, say=said.append, **options), said


def test_commands_of_a_job_run_in_order_and_once(tmp_path):
    folder = tmp_path / "a"
    failed, said = run(job(folder, "print('first')", "print('second')"))
    assert failed == {}
    assert (folder / "result.txt").read_text() == "done"
    log = (folder / "log.txt").read_text()
    assert log.index("first\n") < log.index("second\n")
    assert said[0] == f"run 1 of 1, {folder}:"
    assert said[1] == """python -c 'print('"'"'first'"'"')'"""  # to be pasted
    assert "finished after" in said[-1]
    (folder / "result.txt").write_text("mine")
    _, said = run(job(folder, "print('first')", "print('second')"))
    assert (folder / "result.txt").read_text() == "mine"
    assert len(said) == 1 and "found finished" in said[0]


def test_a_failure_is_reported_with_its_last_line_stops_no_other_and_is_tried_again(tmp_path):
    program = (
        "import os, sys; print('error: no such data'); "
        f"sys.exit(0 if os.path.exists({str(tmp_path / 'mended')!r}) else 2)"
    )
    bad = job(tmp_path / "bad", program)
    failed, said = run(bad, job(tmp_path / "good"))
    assert failed == {tmp_path / "bad": "error: no such data (exit status 2)"}
    assert not bad.finished
    assert (tmp_path / "good/result.txt").exists()
    assert any("failed" in line and "no such data" in line for line in said)
    (tmp_path / "mended").touch()
    assert run(bad)[0] == {}


def test_another_scoring_of_a_finished_run_is_carried_out(tmp_path):
    """The sweep was typed without the CRF before, or with other parameters of it."""
    folder = tmp_path / "a"
    run(job(folder, "print('training')", text="before"), device="first")
    for ending in ("finished after", "found finished"):
        _, said = run(job(folder, "print('training')", text="after"))
        assert ending in said[-1]
        assert (folder / "result.txt").read_text() == "after"
    assert json.loads((folder / "entry.json").read_text())["device"] == "first"  # it has trained


def test_jobs_run_at_once_each_with_the_environment_of_its_slot(tmp_path):
    # Each waits for the other, so neither ends alone.
    program = (
        "import os, pathlib, time\n"
        "mine = int(os.environ['PLACE'])\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "(root / f'here{mine}').touch()\n"
        "while not (root / f'here{1 - mine}').exists(): time.sleep(0.01)\n"
    )
    slots = [{"PLACE": "0"}, {"PLACE": "1"}]
    failed, said = run(*(job(tmp_path / name, program) for name in "ab"), slots=slots)
    assert failed == {}
    assert {line.split()[0] for line in said if "python" in line} == {"PLACE=0", "PLACE=1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_children_die_with_a_sweep_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    write = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    program = f"""
import pathlib, sys
from deeplab_jax import sweeps
commands = ((sys.executable, "-c", {write + "; time.sleep(600)"!r}),)
sweeps.run([sweeps.Job(pathlib.Path({str(tmp_path / "a")!r}), commands, "result.txt")], [{{}}])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    wait_until(lambda: pid.exists() and pid.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_alive(int(pid.read_text())))


def test_a_job_waits_for_the_process_that_is_still_in_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    with workdir.hold(folder) as other:

        def leave(seconds):
            (folder / "result.txt").write_text("theirs")
            other.close()

        monkeypatch.setattr(sweeps.time, "sleep", leave)
        failed, said = run(job(folder))
    assert failed == {}
    assert (folder / "result.txt").read_text() == "theirs"
    assert "found finished" in said[-1]


def test_slots_are_the_devices_that_a_process_may_see(monkeypatch):
    """A machine without accelerator is one slot, or as many as are asked for."""
    probed = subprocess.CompletedProcess([], 0, stdout="cpu|8|cpu\n")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: probed)
    assert sweeps.find_devices() == (f"CPU, {os.cpu_count()} cores", [{}])
    assert sweeps.find_devices(3)[1] == [{}, {}, {}]
    probed.stdout = "cuda|2|NVIDIA H100\n"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    places = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert sweeps.find_devices() == ("NVIDIA H100", places)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert sweeps.slot_of("cuda", 1) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert sweeps.slot_of("tpu", 3)["TPU_VISIBLE_CHIPS"] == "3"
    probed.returncode, probed.stderr = 1, "Traceback\nRuntimeError: no TPU\n"
    with pytest.raises(UserError, match="no device here: RuntimeError: no TPU"):
        sweeps.find_devices()


def test_a_folder_that_cannot_be_made_fails_alone_and_runs_are_numbered(tmp_path):
    (tmp_path / "file").write_text("")
    failed, said = run(job(tmp_path / "file/a"), job(tmp_path / "b"), job(tmp_path / "c"))
    assert failed == {tmp_path / "file/a": "the folder cannot be used: Not a directory"}
    assert (tmp_path / "b/result.txt").exists()
    assert any(f"run 2 of 3, {tmp_path / 'b'}: finished after" in line for line in said)
    assert any("all done in about" in line for line in said)  # after the second, of the third
    assert said[-1].startswith(f"run 3 of 3, {tmp_path / 'c'}: finished after")


def result(row, seed, before, after=None, *, rates="2, 4"):
    numbers = (1234567, 10.0, 60.0, before, after)
    return sweeps.Result(row, seed, *numbers, "python x", "CPU", {"rates": rates})


SWEEP = [
    result("narrow", 0, 0.50, 0.51),
    result("narrow", 1, 0.54, 0.52),
    result("wide", 0, 0.60, 0.61, rates="24†"),
    result("wide", 1, 0.59, 0.53, rates="24†"),
    result("odd", 0, 0.50, 0.51),
]


def cells(results, published=None):
    lines = sweeps.markdown(results, published=published or {}).splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_table_has_mean_and_deviation_over_seeds_of_each_label_beside_published_numbers():
    narrow, wide, odd = cells(SWEEP)
    assert narrow["mean IoU %"] == f"52.00 ± {100 * statistics.stdev([0.50, 0.54]):.2f}"
    assert wide["mean IoU after CRF %"] == f"57.00 ± {100 * statistics.stdev([0.61, 0.53]):.2f}"
    assert (narrow["seeds"], odd["seeds"]) == ("2", "1")
    assert odd["mean IoU %"] == "50.00"  # one seed has no deviation
    assert (wide["rates"], wide["parameters"]) == ("24†", "1,234,567")
    assert wide["images/s in training"] == "10"
    assert "paper %" not in narrow
    shown, other, _ = cells(SWEEP, {"narrow": (65.76, None)})
    assert (shown["paper %"], other["paper %"]) == ("65.76", "")
    assert "paper after CRF %" not in shown
    mixed = [result("a", 0, 0.5), result("a", 1, 0.5, rates="3")]
    assert cells(mixed)[0]["rates"] == "2, 4 or 3"
    assert "mean IoU after CRF %" not in cells(mixed)[0]
    (fast,) = cells([result("a", 0, 0.5)._replace(training_images_per_second=3712.3)])
    assert fast["images/s in training"] == "3,712"


def test_a_difference_counts_when_it_exceeds_what_the_seeds_make():
    said = sweeps.comparisons(SWEEP)
    spread = "the spread of the seeds"
    assert f"wide against narrow, before CRF: +7.50 points, more than {spread} (4.00)." in said
    # Every seed is better, and yet one of them by chance.
    assert f"wide against narrow, after CRF: +5.50 points, within {spread} (8.00)." in said
    assert "odd against wide, before CRF: -9.50 points, of one seed, which tells no spread." in said
    assert any("odd against narrow" in line for line in said)
    one_seed = sweeps.comparisons(SWEEP[:1] + SWEEP[-1:])
    assert one_seed == ["one seed a row: what seeds alone would change is not known"]
    found = sweeps.compare([0.50, 0.54], [0.53, 0.6])
    assert found == f"+4.50 points, within {spread} (7.00)"
