"""What ran on this worker while the ledger was away: the little that it can know by itself."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from ratelimit import Answer, Candidate, Duplicate, Leased, Run
from ratelimit.local import Refuses

REMEMBERED = 10_000


class Unledgered:
    """Answers in place of the ledger, for queues that go on without it.

    It sees one worker's deliveries only, and forgets all but the latest: two deliveries of a job that two workers
    read both run.
    """

    def __init__(self) -> None:
        self._fences: dict[str, str] = {}
        """Of each job that ran: the greatest fence."""

    def admit(
        self,
        candidates: Sequence[Candidate],
        running: Collection[str],
        ask_again: timedelta,
        refuses: Refuses | None = None,
    ) -> list[Answer]:
        """Answer whether each may run, without a lease; `running` are the identities of jobs that run here.

        `refuses` takes from limits that hold on; without it none does.
        """
        here = set(running)
        return [self._answer(one, here, ask_again, refuses) for one in candidates]

    def _answer(
        self, candidate: Candidate, here: set[str], ask_again: timedelta, refuses: Refuses | None
    ) -> Answer:
        name, fence = candidate.identity, candidate.fence
        if name in here:
            return Leased(ask_again)
        if fence <= self._fences.get(name, ""):
            return Duplicate()
        refusal = refuses(candidate) if refuses else None
        if refusal is not None:
            return refusal
        if len(self._fences) >= REMEMBERED:
            del self._fences[next(iter(self._fences))]
        self._fences[name] = fence
        here.add(name)
        return Run("", 0)
