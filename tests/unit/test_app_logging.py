"""What the worker's process writes to its log."""

import importlib
import logging

import pytest

from streams.app import Process


def test_the_root_logger_keeps_the_level_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root", logging.WARNING)
    root.addHandler(logging.NullHandler())
    process = Process.__new__(Process)
    monkeypatch.setattr(process, "spinner", object(), raising=False)
    process.on_setup_root_logger(root, logging.WARNING)
    assert (root.level, len(root.handlers)) == (logging.WARNING, 1)


def test_a_commit_that_takes_longer_than_the_time_between_two_is_no_warning() -> None:
    importlib.import_module("streams.primary")
    assert not logging.getLogger("mode.timers").isEnabledFor(logging.WARNING)
