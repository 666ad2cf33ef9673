"""Calls in the background run one at a time, and neither they nor their errors are lost."""

from __future__ import annotations

import threading

import pytest

from refusal.inference.background import OneInFlight


def test_calls_run_in_order_on_one_other_thread_and_are_done_at_the_end():
    done = []
    with OneInFlight() as background:
        for number in range(5):
            background.submit(lambda number: done.append((number, threading.current_thread().name)), number)
    assert [number for number, _ in done] == list(range(5))
    assert {name for _, name in done} == {"background_0"}


def test_a_call_begins_only_when_the_one_before_is_done():
    may_end, events = threading.Event(), []

    def slow():
        assert may_end.wait(10)
        events.append("first done")

    with OneInFlight() as background:
        background.submit(slow)
        events.append("goes on")
        may_end.set()
        background.submit(events.append, "second")
    assert events == ["goes on", "first done", "second"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_is_raised_by_the_next_call_and_no_other_begins(error):
    def fail():
        raise error

    done = []
    with pytest.raises(type(error)), OneInFlight() as background:  # noqa: PT012
        background.submit(fail)
        background.submit(done.append, 1)
    assert done == []


def test_an_error_of_the_last_call_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), OneInFlight() as background:
        background.submit(lambda: 1 // 0)


def test_after_another_error_the_last_call_is_waited_for_and_its_error_logged(caplog):
    may_end, done = threading.Event(), []

    def slow():
        assert may_end.wait(10)
        done.append(1)
        raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt), OneInFlight() as background:  # noqa: PT012
        background.submit(slow)
        threading.Timer(0.01, may_end.set).start()
        raise KeyboardInterrupt
    assert done == [1]
    assert "disk full" in caplog.text
