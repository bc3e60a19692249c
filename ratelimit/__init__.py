"""May this job run now? One answer per candidate, one round trip per batch, never a wait.

`ratelimit.redis.RedisAdmission` keeps the ledger and the limits in Redis, `ratelimit.model.ModelAdmission` in
memory. docs/explanation/admission.md has the rules.
"""

from ratelimit.admission import (
    Admission,
    AdmissionUnavailable,
    Answer,
    Candidate,
    Concurrency,
    Done,
    Duplicate,
    Gate,
    InLine,
    Lease,
    Leased,
    Limit,
    Limited,
    Limits,
    Mark,
    Released,
    Run,
    Waiting,
    fence,
    identity,
)
from ratelimit.views import Known, Left, Views

__all__ = [
    "Admission",
    "AdmissionUnavailable",
    "Answer",
    "Candidate",
    "Concurrency",
    "Done",
    "Duplicate",
    "Gate",
    "InLine",
    "Known",
    "Lease",
    "Leased",
    "Left",
    "Limit",
    "Limited",
    "Limits",
    "Mark",
    "Released",
    "Run",
    "Views",
    "Waiting",
    "fence",
    "identity",
]
