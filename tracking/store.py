"""What the sink writes: events, executions and its own positions, in one transaction.

The position in `sink_positions` is the truth about what was read. Taking a partition over raises its epoch;
a commit names the epoch it took, so a sink that was thought dead and comes back cannot write (P5).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from tracking.database import Fenced
from tracking.events import Event
from tracking.fold import IDENTITY, LEAST, REGISTERS, fold
from tracking.models import JobExecution, LifecycleEvent

Partition = tuple[str, int]
"""A topic and one of its partitions."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition that this sink may write for, as long as nobody takes a later epoch."""

    position: int
    epoch: int


def _columns(model: type[JobExecution] | type[LifecycleEvent]) -> list[str]:
    return [column.name for column in model.__table__.columns if column.computed is None]


def _values(model: type[JobExecution] | type[LifecycleEvent]) -> str:
    # JSON columns arrive as text: a number in them keeps all its digits, Python never sees it.
    return ", ".join(
        f"(r.{name} #>> '{{}}')::jsonb" if name in ("input", "output") else f"r.{name}"
        for name in _columns(model)
    )


_APPEND = text(f"""
INSERT INTO lifecycle_events ({", ".join(_columns(LifecycleEvent))})
SELECT {_values(LifecycleEvent)}
  FROM json_populate_recordset(NULL::lifecycle_events, CAST(:rows AS json)) AS r
    ON CONFLICT (event_id) DO NOTHING
""")


def _upsert() -> str:
    """Return the statement that merges rows with the stored ones as `tracking.fold.merge` does."""
    moves = [
        f"{column} = CASE WHEN new.{key} > old.{key} THEN new.{column} ELSE old.{column} END"
        for key, columns in REGISTERS.items()
        for column in (*columns, key)
    ]
    moves += [f"{column} = LEAST(new.{column}, old.{column})" for column in LEAST]
    changes = [f"new.{key} > old.{key}" for key in REGISTERS]
    changes += [f"LEAST(new.{column}, old.{column}) IS DISTINCT FROM old.{column}" for column in LEAST]
    merged = ", ".join(moves).replace("new.", "excluded.")
    changed = " OR ".join(changes).replace("new.", "excluded.")
    return f"""
INSERT INTO job_executions AS old ({", ".join(_columns(JobExecution))})
SELECT {_values(JobExecution)}
  FROM json_populate_recordset(NULL::job_executions, CAST(:rows AS json)) AS r
    ON CONFLICT ({", ".join(IDENTITY)}) DO UPDATE SET {merged} WHERE {changed}
"""


_MERGE = text(_upsert())

_CLAIM = text("""
INSERT INTO sink_positions AS old (topic, partition, position, epoch)
VALUES (:topic, :partition, 0, 1)
    ON CONFLICT (topic, partition) DO UPDATE SET epoch = old.epoch + 1
RETURNING position, epoch
""")

_MOVE = text("""
UPDATE sink_positions SET position = :position
 WHERE topic = :topic AND partition = :partition AND epoch = :epoch
""")


class Store:
    """The database as the sink sees it."""

    def __init__(self, database: Engine) -> None:
        self.database = database

    def claim(self, partitions: Iterable[Partition]) -> dict[Partition, Claim]:
        """Take partitions over and return where to read on; whoever had them before is fenced.

        Waits for a commit of the former owner that is under way.
        """
        with self.database.begin() as connection:
            return {
                (topic, partition): Claim(
                    *connection.execute(_CLAIM, {"topic": topic, "partition": partition}).one()
                )
                for topic, partition in sorted(partitions)
            }

    def commit(
        self,
        events: Sequence[Event],
        positions: Mapping[Partition, int],
        epochs: Mapping[Partition, int],
    ) -> None:
        """Write the events, what they mean, and the next offsets to read: all or nothing.

        Raises Fenced when one of the partitions has a later owner.
        """
        with self.database.begin() as connection:
            # Positions first: a fenced sink stops before it writes, and the next owner waits for this commit.
            _move(connection, positions, epochs)
            if events:
                connection.execute(_APPEND, {"rows": _json(_event_row(event) for event in events)})
                connection.execute(_MERGE, {"rows": _json(fold(events))})

    def positions(self, topic: str) -> dict[int, int]:
        """Return the next offset to read of each partition that was ever taken."""
        with self.database.connect() as connection:
            found = connection.execute(
                text("SELECT partition, position FROM sink_positions WHERE topic = :topic"), {"topic": topic}
            )
            return {row.partition: row.position for row in found}

    def reset(self, topic: str) -> None:
        """Empty the tables and put every position to the start; running sinks are fenced and begin again."""
        with self.database.begin() as connection:
            # Before the tables, in the order of a commit: the other way round the two could deadlock.
            connection.execute(
                text("UPDATE sink_positions SET position = 0, epoch = epoch + 1 WHERE topic = :topic"),
                {"topic": topic},
            )
            connection.execute(text("TRUNCATE job_executions, lifecycle_events"))


def _move(
    connection: Connection, positions: Mapping[Partition, int], epochs: Mapping[Partition, int]
) -> None:
    for (topic, partition), position in sorted(positions.items()):
        moved = connection.execute(
            _MOVE,
            {
                "topic": topic,
                "partition": partition,
                "position": position,
                "epoch": epochs.get((topic, partition), 0),
            },
        )
        if moved.rowcount != 1:
            raise Fenced(f"another sink has taken over partition {partition} of {topic}")


def _event_row(event: Event) -> dict[str, Any]:
    error = event.error
    return {
        "event_id": event.id,
        "organization_id": event.organization_id,
        "job_id": event.job_id,
        "job_type": event.job_type,
        "queue_name": event.queue_name,
        "kind": event.kind,
        "at": event.at,
        "attempt": event.attempt,
        "max_attempts": event.max_attempts,
        "snoozes": event.snoozes,
        "replay_id": event.replay_id,
        "worker_id": event.worker_id,
        "worker_host": event.worker_host,
        "queued_at": event.queued_at,
        "started_at": event.started_at,
        "finished_at": event.finished_at,
        "not_before": event.not_before,
        "duration_ms": event.duration_ms,
        "cpu_time_ms": event.cpu_time_ms,
        "memory_bytes": event.memory_bytes,
        "progress": event.progress,
        "reason": event.reason,
        "error_kind": error and error.kind,
        "error_message": error and error.message,
        "error_stack": error and error.stack,
        "error_fingerprint": error and error.fingerprint,
        "origin": event.origin,
    }


def _json(rows: Iterable[Mapping[str, Any]]) -> str:
    return json.dumps(list(rows), default=datetime.isoformat, separators=(",", ":"))
