"""The sink with a failpoint: SINK_FAILPOINT=<name>:<signal>:<passage> sends it a signal at that passage.

before-write: with records read and nothing written of them. before-commit: with rows written and not committed.
after-commit: with rows committed, before it does anything else.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from itertools import count

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from tracking.events import Event
from tracking.store import Partition, Store

POINTS = ("before-write", "before-commit", "after-commit")

_passages = count(1)
_writing = False


def passed(point: str) -> None:
    """Send the signal when it is time to."""
    name, how, passage = os.environ["SINK_FAILPOINT"].split(":")
    if point == name and next(_passages) == int(passage):
        os.kill(os.getpid(), signal.Signals[f"SIG{how}"])


def install() -> None:
    """Put the failpoints around the sink's one transaction."""
    original = Store.commit

    def commit(
        self: Store,
        events: Sequence[Event],
        positions: Mapping[Partition, int],
        epochs: Mapping[Partition, int],
    ) -> None:
        global _writing
        passed("before-write")
        _writing = True
        try:
            original(self, events, positions, epochs)
        finally:
            _writing = False
        passed("after-commit")

    Store.commit = commit  # type: ignore[method-assign]

    @event.listens_for(Engine, "commit")
    def before_commit(connection: Connection) -> None:
        if _writing:
            passed("before-commit")


if __name__ == "__main__":
    from cli.main import main

    install()
    main(["tracking"])
