"""What the worker's process writes to its log."""

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
