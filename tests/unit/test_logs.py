"""What a worker's log leaves out of what aiokafka says."""

import logging
from collections.abc import Callable

import pytest

from streams.logs import MOST_SENTENCES, SAY_AGAIN_AFTER, Repeats, leave_out_repeats
from tests.conftest import ExpectedErrors

AFTER_S = SAY_AGAIN_AFTER.total_seconds()
Say = Callable[..., list[str]]


@pytest.fixture
def say() -> Say:
    """Return what passes of a sentence that is said at some seconds."""
    repeats = Repeats()

    def said(*at_seconds: float, level: int = logging.ERROR, node: int = 1) -> list[str]:
        passed: list[str] = []
        for at in at_seconds:
            record = logging.LogRecord("aiokafka", level, "file", 1, "node %s is away", (node,), None)
            record.created = at
            if repeats.filter(record):
                passed.append(record.getMessage())
        return passed

    return said


def test_an_error_passes_once_and_after_a_while_tells_how_often_it_was_left_out(say: Say) -> None:
    assert say(0, 0.1, 0.2, AFTER_S - 0.1) == ["node 1 is away"]
    assert say(AFTER_S) == ["node 1 is away (3 times more since this was last said)"]
    assert say(2 * AFTER_S) == ["node 1 is away"]


def test_another_sentence_passes(say: Say) -> None:
    assert say(0, 1) == ["node 1 is away"]
    assert say(0, 1, node=2) == ["node 2 is away"]


def test_warnings_pass_always(say: Say) -> None:
    assert len(say(0, 1, level=logging.WARNING)) == 2


def test_a_clock_that_is_set_back_silences_nothing(say: Say) -> None:
    assert len(say(3600, 0)) == 2


def test_what_it_remembers_is_bounded(say: Say) -> None:
    for node in range(MOST_SENTENCES + 1):
        say(0, 1, node=node)
    assert say(2, node=0) == ["node 0 is away"]
    assert say(2, node=MOST_SENTENCES) == []


def test_it_is_about_all_modules_of_one_library_and_no_other(
    caplog: pytest.LogCaptureFixture, expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("node 1 is away")
    ours, theirs, other = (logging.getLogger(name) for name in ("calm.a", "calm.b.c", "calmer"))
    leave_out_repeats("calm")
    for logger in (ours, theirs, other):
        for _ in range(3):
            logger.error("node 1 is away")
    assert [one.name for one in caplog.records] == ["calm.a", "calm.b.c", *["calmer"] * 3]
