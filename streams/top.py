"""How organizations stand on all workers together: what each of them tells, added up."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ratelimit import Views
from ratelimit.control import Control
from streams.questions import WITHIN, Answers, ask
from streams.standings import OTHERS, Standing, first


@dataclass(frozen=True, slots=True)
class Row:
    """One organization, or all others together."""

    organization_id: str
    organizations: int
    running: int
    queued: int
    limited: int
    skipped: int
    slot_seconds: float
    """Of about the last minute."""
    share: float
    """Of the slot seconds of all organizations, 0 to 1."""
    fair_share: float
    """Its weight's share of the weights of all organizations that run, wait or ran lately, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Top:
    """The organizations that use most, the first first, and the workers that told nothing."""

    rows: tuple[Row, ...]
    silent: tuple[str, ...]


async def top(
    control: Control,
    admission: Views,
    *,
    most: int,
    queue_name: str | None = None,
    within: timedelta = WITHIN,
) -> Top:
    """Ask all workers; raises AdmissionUnavailable when Redis cannot answer."""
    question = {"what": "top", "queue": queue_name}
    return summed(await ask(question, await admission.living(), control, within=within), most)


def summed(answers: Answers, most: int) -> Top:
    """Add up what workers told. Where a worker counts an organization among its others, so does the sum."""
    found: defaultdict[str, Standing] = defaultdict(lambda: Standing(organizations=0))
    for answer in answers.by_worker.values():
        for name, told in answer.items():
            one = found[name]
            weight = max(one.weight, told["weight"])
            one.add(Standing(**told))
            if name != OTHERS:
                # The same organization on several workers has one weight.
                one.weight, one.organizations = weight, 1
    rest = found.pop(OTHERS, None)
    chosen = first(found, most)
    if rest is not None:
        chosen.setdefault(OTHERS, Standing(organizations=0)).add(rest)
    return Top(tuple(_rows(chosen)), tuple(answers.silent))


def _rows(chosen: Mapping[str, Standing]) -> list[Row]:
    seconds = sum(one.seconds for one in chosen.values())
    weights = sum(one.weight for one in chosen.values())
    return [
        Row(
            name,
            one.organizations,
            one.running,
            one.queued,
            one.limited,
            one.skipped,
            round(one.seconds, 3),
            one.seconds / seconds if seconds else 0.0,
            one.weight / weights if weights else 0.0,
        )
        for name, one in chosen.items()
    ]
