"""A sink in a process of its own, to be killed, frozen and stopped: TOPIC KAFKA DATABASE_URL [COMMITS].

With COMMITS it dies right after so many commits, before it does anything else.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from tests.integration.lifecycle import CODEC, Topics
from tracking.database import open_database
from tracking.events import Event
from tracking.sink import Sink
from tracking.store import Partition, Store


class DiesAfterCommits(Store):
    """Kills its process between a commit and whatever follows it."""

    commits_left = int(sys.argv[4]) if len(sys.argv) > 4 else -1

    def commit(
        self,
        events: Sequence[Event],
        positions: Mapping[Partition, int],
        epochs: Mapping[Partition, int],
    ) -> None:
        super().commit(events, positions, epochs)
        self.commits_left -= 1
        if self.commits_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    topics = Topics({"bootstrap.servers": sys.argv[2], "session.timeout.ms": 6_000}, sys.argv[1], 0)
    sink = Sink(DiesAfterCommits(open_database(sys.argv[3])), CODEC, topics.kafka, topics.settings(batch=50))
    signal.signal(signal.SIGTERM, lambda *_: sink.stop())
    sink.run()
