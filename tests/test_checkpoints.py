"""Checkpoints written, damaged in every way, and read again."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import save_faults
from save_faults import empty, flip_a_bit, truncate

from deeplab_jax import checkpoints
from deeplab_jax.types import UserError


def tree_of(step):
    """What a state looks like: nested names, named tuples, scalars, nothing."""
    params = {"trunk": {"conv1": {"kernel": jnp.full((3, 2), step + 0.5)}}, "bias": jnp.ones(3)}
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda count: 0.1))
    return {
        "model": {"params": params, "batch_stats": {}},
        "optimizer": {"step": jnp.int32(step), "optimizer": optimizer.init(params)},
    }


def save(folder, step, *, keep_newest=2, keep=None):
    with checkpoints.Saver(folder, keep_newest=keep_newest) as saver:
        saver.save(step, tree_of(step), keep=keep)
        saver.wait()


def assert_whole(folder, step):
    wanted = tree_of(step)
    found = {item: checkpoints.read(folder, step, item, like) for item, like in wanted.items()}
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 1)
    save(folder, 2)
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    """Steps 1 and 2, to be spoilt."""
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


@pytest.mark.parametrize("spoil", [truncate, empty, flip_a_bit, Path.unlink])
def test_damage_to_any_file_of_the_newest_step_sets_it_aside(spoil, two_steps, tmp_path, capsys):
    names = [p.relative_to(two_steps) for p in (two_steps / "2").rglob("*") if p.is_file()]
    assert len(names) > 10 and Path("2/manifest.json") in names
    for number, name in enumerate(names):
        if spoil is not Path.unlink and (two_steps / name).stat().st_size == 0:
            continue  # nothing to spoil
        folder = shutil.copytree(two_steps, tmp_path / str(number))
        spoil(folder / name)
        assert checkpoints.recover(folder) == 1, name
        assert_whole(folder, 1)
        assert "2.damaged" in capsys.readouterr().err
        assert names_in(folder) == {"1", "2.damaged"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"files": [], "step": 2}', '{"files": 3, "step": 2}', "[" * 10**5),
        '{"files": {"../1/manifest.json": "0"}, "step": 2}',
    ],
)
def test_a_manifest_of_anything_is_damage_and_looking_for_a_whole_step_changes_nothing(
    folder, text
):
    (folder / "2" / checkpoints.MANIFEST).write_text(text)
    (folder / "3.partial").mkdir()
    before = sorted(folder.rglob("*"))
    assert checkpoints.newest_good(folder)[0] == 1
    assert sorted(folder.rglob("*")) == before
    assert checkpoints.recover(folder) == 1
    assert names_in(folder) == {"1", "2.damaged"}


def test_missing_and_added_files_and_a_step_of_another_name_are_damage(folder, capsys):
    shutil.copytree(folder / "2", folder / "4")
    (folder / "2" / "model" / "stray").touch()
    (folder / "3").mkdir()
    step, wrong = checkpoints.newest_good(folder)
    assert step == 1
    assert (wrong[4], wrong[3]) == ("was written as step 2", "has no manifest.json")
    assert "model/stray" in wrong[2]
    checkpoints.recover(folder)
    assert "3 has no manifest.json; it is now 3.damaged" in capsys.readouterr().err


def test_a_step_can_be_saved_where_one_was_set_aside(folder):
    for number in range(2):
        empty(folder / "2" / checkpoints.MANIFEST)
        assert checkpoints.recover(folder) == 1
        save(folder, 2)
        assert_whole(folder, 2)
        assert (folder / f"2.damaged{number or ''}").is_dir()


def test_without_a_whole_step_there_is_nothing_to_go_on_from(folder, capsys):
    for step in (1, 2):
        empty(folder / str(step) / checkpoints.MANIFEST)
    assert checkpoints.recover(folder) is None
    assert "no whole checkpoint is left" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_says_nothing_about_the_step(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints.hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"2 cannot be read \(Permission denied\)"):
        checkpoints.recover(folder)
    assert names_in(folder) == {"1", "2"}


def test_a_link_in_a_step_is_damage_and_what_it_leads_to_stays(folder, tmp_path):
    """Even to the very file of the manifest, which may change where it lies."""
    (outside := tmp_path / "outside").mkdir()
    (outside / "other").write_text("precious")
    (victim,) = (folder / "2" / "model" / "state" / "d").iterdir()
    victim.rename(outside / "file")
    victim.symlink_to(outside / "file")
    (folder / "3.partial").symlink_to(outside)
    assert checkpoints.newest_good(folder)[0] == 1
    (outside / "file").rename(victim)
    (folder / "2" / "model" / "link").symlink_to(outside)
    assert checkpoints.recover(folder) == 1
    assert (outside / "other").read_text() == "precious"


def test_an_old_step_that_cannot_be_removed_stops_no_save(folder, monkeypatch):
    """As on a network disk, where a file that is read stays."""
    rmtree = shutil.rmtree

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(checkpoints.shutil, "rmtree", refuse)
    save(folder, 3, keep_newest=1)
    assert checkpoints.steps(folder) == [3]
    monkeypatch.setattr(checkpoints.shutil, "rmtree", rmtree)
    assert checkpoints.recover(folder) == 3
    assert names_in(folder) == {"3"}


def test_the_newest_steps_and_the_best_are_kept_and_one_saved_again_is_replaced(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep_newest=2, keep=2)
    assert checkpoints.steps(tmp_path) == [2, 4, 5]
    stamp = (tmp_path / "5" / checkpoints.MANIFEST).stat().st_mtime_ns
    save(tmp_path, 5)
    assert_whole(tmp_path, 5)
    assert (tmp_path / "5" / checkpoints.MANIFEST).stat().st_mtime_ns > stamp


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_never_written_and_the_next_call_says_so(folder, value):
    saver = checkpoints.Saver(folder, keep_newest=1)
    saver.save(3, {"model": {"kernel": np.array([1.0, value])}})
    saver.thread.shutdown(wait=True)
    with pytest.raises(UserError, match="model/kernel is not finite after update 3"):
        saver.check()
    saver.check()  # it is told once
    assert names_in(folder) == {"1", "2"}


def test_a_state_changed_after_the_call_is_saved_as_it_was(tmp_path):
    kernel = np.zeros(100_000)
    saver = checkpoints.Saver(tmp_path, keep_newest=1)
    saver.save(1, {"model": {"kernel": kernel}})
    kernel[:] = 1
    saver.wait()
    assert not checkpoints.read(tmp_path, 1, "model", {"kernel": kernel})["kernel"].any()


def test_an_error_of_the_run_does_not_cut_off_a_save(tmp_path, monkeypatch):
    write = checkpoints.write_arrays
    slowly = lambda path, items: (time.sleep(0.5), write(path, items))  # noqa: E731
    monkeypatch.setattr(checkpoints, "write_arrays", slowly)
    with pytest.raises(KeyboardInterrupt), checkpoints.Saver(tmp_path, keep_newest=1) as saver:
        saver.save(1, {"model": {"kernel": np.ones(3)}})
        raise KeyboardInterrupt
    assert checkpoints.newest_good(tmp_path) == (1, {})


@pytest.mark.parametrize("size", [100, 1_000, 20_000])
def test_a_full_disk_is_told_and_older_steps_stay(folder, size):
    """A limit on the size of files cuts writes short at three places."""
    saver = checkpoints.Saver(folder, keep_newest=1)
    noise = np.random.default_rng(0).normal(size=10_000)
    with save_faults.full_disk(size):
        saver.save(3, {"model": {"noise": noise}})
        with pytest.raises(UserError, match="update 3 could not be written .*File too large"):
            saver.wait()
    assert names_in(folder) == {"1", "2"}
    assert_whole(folder, 2)


@pytest.mark.parametrize(
    ("like", "told"),
    [
        ({"params": {"bias": np.ones(4)}}, "holds float32[3] as params/bias, and the network"),
        ({"params": {}, "batch_stats": {"mean": np.ones(3)}}, "holds nothing as batch_stats/mean"),
    ],
)
def test_other_arrays_than_the_network_has_are_refused_unread(two_steps, like, told):
    with pytest.raises(UserError) as raised:
        checkpoints.read(two_steps, 2, "model", like)
    assert told in str(raised.value)


KILLED = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import save_faults
import test_checkpoints as t

save_faults.kill_in_save(sys.argv[3])
t.save(pathlib.Path(sys.argv[2]), 3, keep_newest=1)
"""


@pytest.mark.parametrize("place", save_faults.PLACES)
def test_a_save_killed_anywhere_leaves_whole_steps_and_leftovers_that_go(folder, place):
    command = [sys.executable, "-c", KILLED, os.path.dirname(__file__), folder, place]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment)
    assert done.returncode == -signal.SIGKILL
    left = names_in(folder)
    committed = place in ("committed", "removal")
    assert left > {"1", "2"} or (place == "arrays" and left == {"1", "2"}) or committed
    assert not committed or left >= {"2", "3"}
    assert checkpoints.recover(folder) == (3 if committed else 2)
    assert all(path.name.isdigit() for path in folder.iterdir())
    for step in checkpoints.steps(folder):
        assert_whole(folder, step)
    json.loads((folder / "2" / checkpoints.MANIFEST).read_text())


@pytest.mark.parametrize("name", ["rates=[6,12]", "a*b?", "{x}~$HOME%41", "two words\nand é中"])
def test_a_folder_of_any_name_gives_back_what_was_saved(two_steps, tmp_path, name):
    folder = shutil.copytree(two_steps, tmp_path / name)
    save(folder, 3, keep_newest=3)
    assert checkpoints.newest_good(folder) == (3, {})
    for step in (1, 2, 3):
        assert_whole(folder, step)


def test_arrays_that_do_not_come_back_are_no_checkpoint(tmp_path, monkeypatch):
    load = checkpoints._load

    def changed(path, like):
        return jax.tree.map(lambda leaf: leaf + 1, load(path, like))

    monkeypatch.setattr(checkpoints, "_load", changed)
    with pytest.raises(UserError, match="could not be written .*not read back as it was written"):
        save(tmp_path, 1, keep_newest=1)
    assert list(tmp_path.iterdir()) == []


def test_an_orbax_without_that_comparison_is_refused(monkeypatch):
    from orbax.checkpoint.experimental.v1._src.saving import execution

    assert callable(execution._check_directory_consistency)
    monkeypatch.delattr(execution, "_check_directory_consistency")
    with pytest.raises(UserError, match="could wait forever; install orbax-checkpoint 0.12.8"):
        checkpoints.stop_comparing_folders()
