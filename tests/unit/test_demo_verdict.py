"""The demonstration's verdict: what does not meet an expectation is named, and the exit code says so."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from demo import __main__ as command
from demo.checks import Check, missed
from demo.run import StepFailed

MET = Check("webhooks: jobs completed", 263, 263)
MISSED = Check("e-mails received by the mail server", 54, 53)


class ScriptedRun:
    """A run that comes to what it is told, and notes whether it was stopped."""

    outcome: Sequence[Check] | BaseException = ()
    stopped = 0

    def __init__(self, data: Path, show: object, *, keep: bool) -> None:
        self.data = data

    def run(self) -> Sequence[Check]:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def stop(self) -> None:
        type(self).stopped += 1

    def say_where_to_look(self) -> None:
        print("left running")


def run(
    monkeypatch: pytest.MonkeyPatch, outcome: Sequence[Check] | BaseException, *options: str
) -> tuple[int, str]:
    monkeypatch.setattr(ScriptedRun, "outcome", outcome)
    monkeypatch.setattr(ScriptedRun, "stopped", 0)
    monkeypatch.setattr(command, "Demonstration", ScriptedRun)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    result = CliRunner().invoke(command.main, options)
    return result.exit_code, result.output


def test_all_met(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run(monkeypatch, [MET, MET])
    assert (code, ScriptedRun.stopped) == (0, 1)
    assert "All 2 expectations are met" in output


def test_one_missed_expectation_is_named_and_makes_the_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missed([MET, MISSED]) == ["e-mails received by the mail server: expected 54, found 53."]
    code, output = run(monkeypatch, [MET, MISSED, MET])
    assert (code, ScriptedRun.stopped) == (1, 1)
    assert "1 of 3 expectations are not met" in output
    assert "e-mails received by the mail server: expected 54, found 53." in output


@pytest.mark.parametrize(("checks", "code"), [([MET], 0), ([MISSED], 1)])
def test_what_is_kept_is_not_stopped(monkeypatch: pytest.MonkeyPatch, checks: list[Check], code: int) -> None:
    assert run(monkeypatch, checks, "--keep")[0] == code
    assert ScriptedRun.stopped == 0


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            StepFailed("ai has ended too early", "Last lines of ai.log:\n  \x1b[?25hout of memory"),
            1,
            "out of memory",
        ),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
@pytest.mark.parametrize("options", [(), ("--keep",)])
def test_what_cannot_be_done_is_said_and_everything_stopped(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str, options: tuple[str, ...]
) -> None:
    exit_code, output = run(monkeypatch, error, *options)
    assert (exit_code, ScriptedRun.stopped) == (code, 1)
    assert said in output
    assert "\x1b" not in output
