"""What the oracle says of an invariant."""

from dataclasses import dataclass

from tests.chaos.history import History


@dataclass(frozen=True, slots=True)
class Verdict:
    """An invariant, what was measured, and what is wrong, if something is."""

    invariant: str
    figure: str
    violation: str = ""
    story: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.violation


def against(history: History, name: str, figure: str, violation: str, job_id: str) -> Verdict:
    """Return the verdict that an invariant was violated, with the story of a job that shows it."""
    return Verdict(name, figure, violation, tuple(history.story(job_id)))
