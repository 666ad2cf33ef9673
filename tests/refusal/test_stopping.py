"""An interruption waits for a point that can be kept, and then comes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from refusal.stopping import delayed


def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_work_goes_on_after_the_signal_and_ends_with_the_block():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    done = []

    def work():
        with delayed() as is_told:
            done.append(is_told())
            tell()
            tell()
            done.append(is_told())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [False, True]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_does_not_wait():
    done = []

    def work():
        with delayed():
            tell(signal.SIGINT)
            done.append(1)
            tell(signal.SIGINT)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_without_a_signal_nothing_happens_and_errors_pass():
    with delayed() as is_told:
        pass
    assert not is_told()

    def work():
        with delayed():
            tell()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_in_another_thread_nothing_is_put_off():
    found = []

    def work():
        with delayed() as is_told:
            found.append(is_told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
