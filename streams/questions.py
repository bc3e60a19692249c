"""Questions to all workers that live, over the channel on which operators speak, and the workers' answers.

For what only the workers know: the next step of each job that they have read. A question is said for a few
seconds; every worker that hears it writes one answer, which is forgotten after a few seconds as well.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from uuid6 import uuid7

from ratelimit import AdmissionUnavailable
from ratelimit.control import Control, Said

log = logging.getLogger(__name__)

QUESTION = "ask:"
"""What the names of questions begin with, among all that operators say."""

WITHIN = timedelta(seconds=2)
"""How long answers are waited for; workers hear a question within half a second."""

KEPT = timedelta(seconds=10)
"""How long a question and its answers are kept."""

LOOK_EVERY = timedelta(milliseconds=50)

Question = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the workers that live have answered."""

    by_worker: Mapping[str, Mapping[str, Any]]
    silent: Sequence[str] = ()
    """The workers that have not answered in time, or could not."""


async def ask(
    question: Question, workers: Sequence[str], control: Control, *, within: timedelta = WITHIN
) -> Answers:
    """Ask workers, and return as soon as all have answered or the time is over."""
    name = str(uuid7())
    found: dict[str, str] = {}
    if workers:
        await control.say({QUESTION + name: json.dumps(question)}, KEPT)
    deadline = time.monotonic() + within.total_seconds()
    while len(found) < len(workers) and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_EVERY.total_seconds())
        found = await control.answers(name, workers)
    answers = {worker: json.loads(text) for worker, text in found.items()}
    heard = {worker: answer for worker, answer in answers.items() if answer is not None}
    return Answers(heard, [worker for worker in workers if worker not in heard])


class Questions:
    """Answers, on behalf of one worker, what is asked.

    What was asked before it began to listen was not asked of it. `answer` raising costs the answer only: no question
    ends a worker.
    """

    def __init__(
        self, worker: str, control: Control | None, answer: Callable[[Question], Mapping[str, Any]]
    ) -> None:
        self._worker = worker
        self._control = control
        self._answer = answer
        self._listens = False

    async def hear(self, news: Iterable[Said]) -> None:
        """Answer the questions among the news."""
        asked = [said for said in news if said.name.startswith(QUESTION) and said.value is not None]
        if self._listens:
            for said in asked:
                await self._tell(said.name.removeprefix(QUESTION), said.value or "")
        self._listens = True

    async def _tell(self, name: str, question: str) -> None:
        text = "null"
        try:
            text = json.dumps(self._answer(json.loads(question)))
        except Exception:
            log.exception("question %s could not be answered", name)
        if self._control is None:
            return
        try:
            await self._control.answer(name, self._worker, text, KEPT)
        except AdmissionUnavailable as error:
            log.warning("the answer to question %s did not get through: %s", name, error)
