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
def asked(exits):
    found = interruption.Interruption()
    found.hold_back()
    found.answer(signal.SIGTERM)
    assert exits == []
    return found


def test_a_signal_is_a_question_where_there_is_something_to_lose(asked):
    assert asked.is_asked()


def test_nobody_asked(exits):
    found = interruption.Interruption()
    assert not found.is_asked()
    assert found.outwait({"loss": jax.numpy.ones(())})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_with_nothing_to_lose(exits, number):
    with pytest.raises(Left):
        interruption.Interruption().answer(number)
    assert exits == [interruption.EXIT_STATUS]


def test_a_second_interrupt_quits_and_a_second_sigterm_does_not(asked, exits):
    asked.answer(signal.SIGTERM)
    assert exits == []
    with pytest.raises(Left):
        asked.answer(signal.SIGINT)
    assert exits == [interruption.QUIT_STATUS]


def test_a_question_that_was_not_answered_is_found_when_all_is_saved(asked):
    with pytest.raises(interruption.Stopped):
        asked.let_go()


def test_every_process_asks_as_often_as_the_one_with_the_longest_share(monkeypatch):
    asked = []
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        interruption.multihost_utils,
        "reached_preemption_sync_point",
        lambda n: bool(asked.append(n)),
    )
    found = interruption.Interruption()
    assert not found.is_asked()
    assert list(found.between(range(3), longest=4)) == [0, 1, 2]
    assert asked == [1, 2, 3, 4, 5]


def test_a_score_ends_at_the_question_that_is_answered_by_yes(monkeypatch):
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        interruption.multihost_utils, "reached_preemption_sync_point", lambda n: n == 2
    )
    numbers = interruption.Interruption().between(range(3), longest=3)
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(interruption.Stopped):
        next(numbers)


def test_an_update_under_way_is_given_up(asked):
    class Never:
        """An array that a device still computes."""

        def is_ready(self):
            return False

    assert not asked.outwait([Never()])
    assert asked.outwait(jax.numpy.ones(()))


def test_signals_of_the_process_are_answered_and_handlers_put_back(monkeypatch):
    answered = []
    before = signal.getsignal(signal.SIGINT)
    with interruption.watch() as found:
        found.hold_back()
        monkeypatch.setattr(found, "answer", lambda number: answered.append(number))
        os.kill(os.getpid(), signal.SIGINT)
        while not answered:
            np.ones(1000).sum()
    assert answered == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
