import os
import signal

import jax
import numpy as np
import pytest

from deeplab_jax import interruption


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def exits(monkeypatch):
    """Statuses that the process would have ended with."""
    statuses = []

    def leave(status):
        statuses.append(status)
        raise Left

    monkeypatch.setattr(interruption.os, "_exit", leave)
    return statuses


@pytest.fixture
def interrupted(exits):
    found = interruption.Interruption()
    found.defer()
    found.answer(signal.SIGTERM)
    assert exits == []
    return found


class Never:
    """An array that a device still computes."""

    def is_ready(self):
        return False


def test_a_deferred_signal_sets_the_flag_and_ends_waiting(interrupted):
    assert interrupted.should_stop()
    assert not interrupted.wait_or_stop([Never()])
    assert interrupted.wait_or_stop(jax.numpy.ones(()))
    found = interruption.Interruption()
    assert not found.should_stop()
    assert found.wait_or_stop({"loss": jax.numpy.ones(())})
    with pytest.raises(interruption.Stopped):
        interrupted.restore()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_before_defer(exits, number):
    with pytest.raises(Left):
        interruption.Interruption().answer(number)
    assert exits == [interruption.EXIT_STATUS]


def test_a_second_sigint_ends_the_process_and_a_second_sigterm_does_not(interrupted, exits):
    interrupted.answer(signal.SIGTERM)
    interrupted.answer(signal.SIGINT)  # at once, as `timeout -s INT` sends two
    assert exits == []
    interrupted.since -= interruption.TOGETHER
    interrupted.answer(signal.SIGTERM)
    assert exits == []
    with pytest.raises(Left):
        interrupted.answer(signal.SIGINT)
    assert exits == [interruption.QUIT_STATUS]


def one_of_several(monkeypatch, reached):
    sync = interruption.multihost_utils
    monkeypatch.setattr(interruption.Interruption, "one_process", False)
    monkeypatch.setattr(sync, "reached_preemption_sync_point", reached)
    return interruption.Interruption()


def test_a_process_with_a_short_shard_calls_the_sync_point_as_often_as_the_longest(monkeypatch):
    calls = []
    found = one_of_several(monkeypatch, lambda number: bool(calls.append(number)))
    assert not found.should_stop()
    assert list(found.between(range(3), longest=4)) == [0, 1, 2]
    assert calls == [1, 2, 3, 4, 5]


def test_between_stops_at_the_sync_point_that_is_reached(monkeypatch):
    numbers = one_of_several(monkeypatch, lambda number: number == 2).between(range(3), longest=3)
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(interruption.Stopped):
        next(numbers)


def test_watch_handles_signals_and_restores_the_handlers(monkeypatch):
    answered = []
    before = signal.getsignal(signal.SIGINT)
    with interruption.watch() as found:
        found.defer()
        monkeypatch.setattr(found, "answer", lambda number: answered.append(number))
        os.kill(os.getpid(), signal.SIGINT)
        while not answered:
            np.ones(1000).sum()
    assert answered == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
