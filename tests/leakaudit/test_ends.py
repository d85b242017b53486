"""Signals: what interrupts a command, once, and what nothing interrupts any more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from leakaudit.work import ends
from leakaudit.work.progress import track

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A suite that runs in the background is born deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_once(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with ends.listening():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for each in SIGNALS:  # an impatient user, a CI system that sends both
            signal.raise_signal(each)
        monkeypatch.setattr(ends, "SAME", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_nothing_interrupts_what_is_ending(number: signal.Signals) -> None:
    with ends.listening():
        ends.close()
        signal.raise_signal(number)
        assert list(track("x", 2)) == [0, 1]


def test_a_swallowed_interrupt_comes_again_in_the_next_loop() -> None:
    with ends.listening():
        with suppress(KeyboardInterrupt):  # as a bare `except:` does, or an exception within __del__
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            next(iter(track("x", 2)))
        ends.took()
        assert list(track("x", 2)) == [0, 1]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ends.listening():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_process_ends_as_any_would() -> None:
    with ends.listening():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os._exit(7)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_elsewhere_than_in_the_main_thread_nothing_is_installed() -> None:
    seen: list[object] = []

    def work() -> None:
        with ends.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
