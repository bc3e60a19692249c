"""Questions to all workers: who answers, who is silent, and that no question ends a worker."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from ratelimit import AdmissionUnavailable
from ratelimit.control import Listener, ModelControl
from streams.questions import Answers, Question, Questions, ask
from tests.conftest import ExpectedErrors

SOON, LONG = timedelta(milliseconds=200), timedelta(seconds=10)


class Hearer:
    """A worker that listens, and answers as told."""

    def __init__(self, control: ModelControl, name: str, answer: Mapping[str, Any] | Exception) -> None:
        self.heard: list[Question] = []
        self._told = answer
        self._listener = Listener(control)
        self._questions = Questions(name, control, self._answer)

    def _answer(self, question: Question) -> Mapping[str, Any]:
        self.heard.append(question)
        if isinstance(self._told, Exception):
            raise self._told
        return self._told

    async def hear(self) -> None:
        await self._questions.hear(await self._listener.news())

    async def listen(self) -> None:
        while True:
            await self.hear()
            await asyncio.sleep(0.005)


async def test_every_worker_answers_once_and_no_answer_is_waited_for_longer_than_needed() -> None:
    control = ModelControl()
    hearers = [Hearer(control, name, {"from": name}) for name in ("a", "b")]
    for one in hearers:
        await one.hear()
    listening = [asyncio.create_task(one.listen()) for one in hearers]
    async with asyncio.timeout(5):
        answers = await ask({"what": "x"}, ["a", "b"], control, within=LONG)
    assert answers == Answers({"a": {"from": "a"}, "b": {"from": "b"}}, [])
    assert [one.heard for one in hearers] == [[{"what": "x"}]] * 2
    for task in listening:
        task.cancel()


async def test_who_does_not_answer_in_time_is_named() -> None:
    control = ModelControl()
    answers = await ask({"what": "x"}, ["gone"], control, within=SOON)
    assert answers == Answers({}, ["gone"])


async def test_without_workers_nothing_is_asked() -> None:
    control = ModelControl()
    assert await ask({"what": "x"}, [], control, within=LONG) == Answers({}, [])
    assert await Listener(control).news() == []


async def test_what_was_asked_before_a_worker_listened_is_not_answered() -> None:
    control = ModelControl()
    await ask({"what": "x"}, ["late"], control, within=SOON)
    late = Hearer(control, "late", {})
    await late.hear()
    assert late.heard == []


async def test_an_answer_that_fails_is_silence_and_ends_nobody(expected_errors: ExpectedErrors) -> None:
    expected_errors.add(r"streams\.questions:question .* could not be answered")
    control = ModelControl()
    broken = Hearer(control, "broken", ValueError("a bug"))
    odd = Hearer(control, "odd", {"no": b"json"})
    for one in (broken, odd):
        await one.hear()
    asking = asyncio.create_task(ask({"what": "x"}, ["broken", "odd"], control, within=LONG))
    while not (broken.heard and odd.heard):
        await broken.hear()
        await odd.hear()
        await asyncio.sleep(0.005)
    async with asyncio.timeout(5):
        assert await asking == Answers({}, ["broken", "odd"])


async def test_an_answer_that_cannot_be_written_ends_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*arguments: object) -> None:
        raise AdmissionUnavailable("down for the test")

    control = ModelControl()
    hearer = Hearer(control, "a", {})
    await hearer.hear()
    await ask({"what": "x"}, ["a"], control, within=SOON)
    monkeypatch.setattr(control, "answer", refuse)
    await hearer.hear()
    assert hearer.heard == [{"what": "x"}]
    assert "did not get through: down for the test" in caplog.text
