"""What a worker's log leaves out."""

import logging
from collections import Counter
from datetime import timedelta

SAY_AGAIN_AFTER = timedelta(seconds=30)
MOST_SENTENCES = 1_000
"""Remembered at once; beyond that all are forgotten, and said again."""


def leave_out_repeats(library: str) -> None:
    """Let each error that the modules of a library log pass once in 30 s.

    For aiokafka: it tells of each attempt to reach a broker, which it makes several times a second for as long as that
    is away.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == library:
            logging.getLogger(name).addFilter(Repeats())


class Repeats(logging.Filter):
    """Lets an error pass that was not said for 30 s, and then says how often it was left out since."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return True
        sentence = record.getMessage()
        since = record.created - self._said.get(sentence, float("-inf"))
        if 0 <= since < SAY_AGAIN_AFTER.total_seconds():
            self._left_out[sentence] += 1
            return False
        if len(self._said) >= MOST_SENTENCES:
            self._said.clear()
            self._left_out.clear()
        self._said[sentence] = record.created
        if left_out := self._left_out.pop(sentence, 0):
            record.msg, record.args = f"{sentence} ({left_out} times more since this was last said)", ()
        return True
