"""What the worker's process writes to its log, and how it ends."""

import asyncio
import importlib
import logging

import faust
import pytest

from streams.app import Process


def test_the_root_logger_keeps_the_level_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root", logging.WARNING)
    root.addHandler(logging.NullHandler())
    monkeypatch.setattr("streams.app.leave_out_repeats", lambda _: None)
    process = Process.__new__(Process)
    monkeypatch.setattr(process, "spinner", object(), raising=False)
    process.on_setup_root_logger(root, logging.WARNING)
    assert (root.level, len(root.handlers)) == (logging.WARNING, 1)


def test_the_process_ends_without_sleeping_once_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    monkeypatch.setattr("mode.worker.asyncio.sleep", sleep)
    process = Process(faust.App("ends"), loop=asyncio.new_event_loop())
    process._shutdown_loop()
    assert process.loop.is_closed()
    assert sleeps == []


def test_a_commit_that_takes_longer_than_the_time_between_two_is_no_warning() -> None:
    importlib.import_module("streams.primary")
    assert not logging.getLogger("mode.timers").isEnabledFor(logging.WARNING)
