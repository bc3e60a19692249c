"""Executions, events, rollups and the positions of the sink."""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE job_executions (
    organization_id text NOT NULL,
    job_id text NOT NULL,
    job_type text NOT NULL,
    job_name text GENERATED ALWAYS AS (job_type) STORED NOT NULL,
    queue_name text NOT NULL,
    status text NOT NULL,
    queued_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    next_retry_at timestamptz,
    last_event_at timestamptz NOT NULL,
    attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    snoozes integer NOT NULL,
    replay_id text,
    reason text,
    progress double precision,
    input jsonb,
    output jsonb,
    error_kind text,
    error_message text,
    error_stack text,
    error_fingerprint text,
    worker_id text,
    worker_host text,
    duration_ms double precision,
    queue_time_ms double precision,
    cpu_time_ms double precision,
    memory_bytes bigint,
    origin text COLLATE "C",
    state_key text COLLATE "C" NOT NULL,
    run_key text COLLATE "C" NOT NULL,
    error_key text COLLATE "C" NOT NULL,
    progress_key text COLLATE "C" NOT NULL,
    input_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (organization_id, job_id),
    CONSTRAINT job_executions_identified CHECK (organization_id <> '' AND job_id <> ''),
    CONSTRAINT job_executions_status CHECK (status IN
        ('waiting', 'delayed', 'queued', 'running', 'retrying', 'completed', 'dead', 'cancelled')),
    CONSTRAINT job_executions_finished_iff_final CHECK
        ((status IN ('completed', 'dead', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT job_executions_counts CHECK (attempt >= 1 AND max_attempts >= 1 AND snoozes >= 0),
    CONSTRAINT job_executions_progress CHECK (progress BETWEEN 0 AND 1),
    CONSTRAINT job_executions_times CHECK (duration_ms >= 0 AND queue_time_ms >= 0)
);
CREATE INDEX job_executions_by_organization ON job_executions (organization_id, queued_at, job_id);
CREATE INDEX job_executions_by_queued_at ON job_executions (queued_at, organization_id, job_id);
CREATE INDEX job_executions_by_finished_at ON job_executions (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX job_executions_by_job ON job_executions (job_id);
CREATE INDEX job_executions_unfinished ON job_executions (status) WHERE finished_at IS NULL;

CREATE TABLE lifecycle_events (
    event_id uuid PRIMARY KEY,
    organization_id text NOT NULL,
    job_id text NOT NULL,
    job_type text NOT NULL,
    queue_name text NOT NULL,
    kind text NOT NULL,
    at timestamptz NOT NULL,
    attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    snoozes integer NOT NULL,
    replay_id text,
    worker_id text,
    worker_host text,
    queued_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    not_before timestamptz,
    duration_ms double precision,
    cpu_time_ms double precision,
    memory_bytes bigint,
    progress double precision,
    reason text,
    error_kind text,
    error_message text,
    error_stack text,
    error_fingerprint text,
    origin text
);
CREATE INDEX lifecycle_events_by_job ON lifecycle_events (organization_id, job_id, at);
CREATE INDEX lifecycle_events_by_at ON lifecycle_events (at);
CREATE INDEX lifecycle_events_with_error ON lifecycle_events (at) WHERE error_fingerprint IS NOT NULL;

CREATE TABLE sink_positions (
    topic text NOT NULL,
    partition integer NOT NULL,
    position bigint NOT NULL,
    epoch bigint NOT NULL,
    PRIMARY KEY (topic, partition),
    CONSTRAINT sink_positions_counts CHECK (position >= 0 AND epoch >= 1)
);
"""

# A view cannot disagree with the rows it counts, whatever order and however often events came.
_ROLLUPS = """
CREATE VIEW rollups WITH (security_invoker = true) AS
SELECT organization_id, queue_name, job_type, status,
       date_trunc('hour', coalesce(finished_at, queued_at), 'UTC') AS hour,
       count(*) AS jobs,
       sum(attempt) AS attempts,
       sum(duration_ms) AS duration_ms_sum,
       max(duration_ms) AS duration_ms_max
  FROM job_executions
 GROUP BY organization_id, queue_name, job_type, status, hour;
COMMENT ON VIEW rollups IS 'Jobs by the hour they finished in, or were queued in while unfinished';
"""


def upgrade() -> None:
    """Create the tables and the view."""
    op.execute(_TABLES)
    op.execute(_ROLLUPS)
