"""Which limits hold for a delivery, by what operators have said."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import Candidate, Concurrency, Gate, Limit, Limited
from ratelimit.control import Said
from ratelimit.local import LocalLimits, shares
from ratelimit.model import ModelAdmission
from streams.agents import load
from streams.errors import ConfigError
from streams.jobs import HANDLERS, Handler
from streams.limits import KNOWN_MAX, DeliveryLimits, holds
from streams.live import LiveWorkers
from streams.rules import (
    ASSIGNED,
    Kind,
    Rate,
    Rule,
    Rules,
    Scope,
    allowed_of_text,
    allowed_text,
    check_scope,
    own_rules,
)
from tests.rig import Clock, cancelled, eventually

load()
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
SYNC, SEND, OCR = HANDLERS["stripe.sync"], HANDLERS["email.send"], HANDLERS["document.ocr"]


def said(name: str, value: str | None) -> Said:
    return Said(1, name, value, None)


def heard(**rules: str | None) -> DeliveryLimits:
    """Return the limits after operators said so; names have `__` for what cannot be in a keyword."""
    limits = DeliveryLimits()
    limits.hear([said(name, value) for name, value in rules.items()])
    return limits


def names(limits: DeliveryLimits, handler: Handler, organization: str = "acme") -> dict[str, object]:
    """Return what a job of the organization is held to: by name, without its gate."""
    return {one.name: one for one in limits.of(handler, organization).limits if not isinstance(one, Gate)}


def test_the_queues_own_limits_hold_while_nobody_says_otherwise() -> None:
    limits = DeliveryLimits()
    assert names(limits, SEND) == {"rate:queue=emails": Limit("rate:queue=emails", 100, MINUTE)}
    assert names(limits, OCR) == {
        "rate:queue=document-processing": Limit("rate:queue=document-processing", 20, SECOND)
    }
    assert names(limits, HANDLERS["ai.analyze_financials"]) == {
        "rate:queue=ai-processing": Limit("rate:queue=ai-processing", 10, MINUTE)
    }
    each = "rate:queue=integrations,organization="
    assert names(limits, SYNC) == {f"{each}acme": Limit(f"{each}acme", 10, SECOND)}
    assert names(limits, SYNC, "globex") == {f"{each}globex": Limit(f"{each}globex", 10, SECOND)}
    assert names(limits, HANDLERS["critical.alert"]) == {}


def test_the_same_tuple_serves_all_that_are_held_to_the_same() -> None:
    limits = DeliveryLimits()
    assert limits.of(SYNC, "acme") is limits.of(SYNC, "acme")
    assert limits.of(SEND, "acme").limits[1] is limits.of(SEND, "globex").limits[1]


def test_a_job_falls_under_a_limit_of_each_kind_and_shape() -> None:
    stated = {
        "limit:rate:queue=emails": "5/s",
        "limit:concurrency:queue=emails": "4",
        "limit:rate:type=email.send": "6/s burst 2",
        "limit:concurrency:provider=mail": "3",
        "limit:rate:organization=*": "7/s",
        "limit:concurrency:organization=acme": "2",
        "limit:rate:type=email.send,organization=*": "8/min",
        "limit:rate:queue=webhooks": "1/d",
        "limit:rate:provider=stripe": "1/d",
    }
    assert names(heard(**stated), SEND) == {
        one.name: one
        for one in (
            Limit("rate:queue=emails", 5, SECOND),
            Limit("rate:type=email.send", 6, SECOND, 2),
            Limit("rate:organization=acme", 7, SECOND),
            Limit("rate:type=email.send,organization=acme", 8, MINUTE),
            Concurrency("concurrency:queue=emails", 4),
            Concurrency("concurrency:provider=mail", 3),
            Concurrency("concurrency:organization=acme", 2),
        )
    }


def test_an_organization_goes_before_its_plan_and_that_before_each() -> None:
    each = "limit:rate:queue=integrations,organization="
    limits = heard(**{f"{each}plan:gold": "50/s", f"{each}initech": "1/s", f"{ASSIGNED}globex": "gold"})
    limits.hear([said(f"{ASSIGNED}initech", "gold")])

    def rate(organization: str) -> int:
        (limit,) = names(limits, SYNC, organization).values()
        assert isinstance(limit, Limit)
        return limit.count

    assert [rate(one) for one in ("acme", "globex", "initech")] == [10, 50, 1]
    limits.hear([said(f"{each}initech", None)])
    assert rate("initech") == 50
    limits.hear([said(f"{ASSIGNED}initech", None), said(f"{each}*", "11/s")])
    assert [rate(one) for one in ("acme", "globex", "initech")] == [11, 50, 11]
    limits.hear([said(f"{each}*", None)])
    assert rate("acme") == 10, "what was taken back leaves the queue's own"


def test_weights_and_caps_are_of_organizations_and_no_limits_of_jobs() -> None:
    limits = heard(
        **{
            "limit:weight:organization=acme": "4",
            "limit:weight:organization=plan:gold": "0.5",
            "limit:backlog:organization=*": "100",
            "limit:backlog:organization=plan:gold": "1000",
            "limit:backlog:organization=initech": "none",
            f"{ASSIGNED}globex": "gold",
            f"{ASSIGNED}acme": "gold",
            f"{ASSIGNED}initech": "gold",
        }
    )
    organizations = ("acme", "globex", "initech", "hooli")
    assert [limits.rules.weight(one, {"acme": 9, "hooli": 3}) for one in organizations] == [4, 0.5, 0.5, 3]
    assert [limits.rules.cap(one) for one in organizations] == [1000, 1000, None, 100]
    assert list(names(limits, SEND)) == ["rate:queue=emails"], "admission is asked about neither"
    limits.hear([said(f"{ASSIGNED}acme", None), said("limit:weight:organization=acme", None)])
    limits.hear([said("limit:backlog:organization=*", None)])
    assert [limits.rules.weight(one, {"acme": 9}) for one in organizations] == [9, 0.5, 0.5, 1]
    assert [limits.rules.cap(one) for one in organizations] == [None, 1000, None, None]


@pytest.mark.parametrize(
    ("kind", "scope", "sentence"),
    [
        ("weight", Scope("emails"), "a weight is of an organization or a plan as a whole"),
        (
            "backlog",
            Scope("emails", organization="acme"),
            "a backlog is of an organization or a plan as a whole",
        ),
        ("backlog", Scope(provider="*"), "got provider="),
        ("weight", Scope(organization="*"), "a weight is beside that of the others"),
    ],
)
def test_a_weight_or_a_cap_elsewhere_is_refused(kind: Kind, scope: Scope, sentence: str) -> None:
    rule = Rule(kind, scope, 4)
    with pytest.raises(ValueError, match=sentence):
        rule.check()
    with pytest.raises(ValueError, match=sentence):
        Rule.of_said(rule.name, "4")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("weight", "none"), ("weight", "nan"), ("weight", "0"), ("weight", "100.1"), ("weight", "much"),
        ("weight", "inf"), ("backlog", "0"), ("backlog", "-1"), ("backlog", "1e3"), ("backlog", ""),
    ],
)  # fmt: skip
def test_what_is_no_weight_or_cap_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(
        ValueError, match=f"expected (a weight from 0.01 to 100|how many jobs).*, got {text!r}"
    ):
        allowed_of_text(kind, text)


@pytest.mark.parametrize("text", ["4", "0.01", "100", "2.5", "33.333333333"])
def test_a_weight_is_a_text(text: str) -> None:
    assert allowed_text(allowed_of_text("weight", text)) == text


def test_a_limit_can_be_switched_off() -> None:
    limits = heard(**{"limit:rate:queue=emails": "none"})
    assert names(limits, SEND) == {}
    each = "limit:rate:queue=integrations,organization="
    limits = heard(**{f"{each}acme": "none"})
    assert names(limits, SYNC) == {}
    assert len(names(limits, SYNC, "globex")) == 1


def test_a_job_costs_no_more_than_its_limits_ever_give_at_once() -> None:
    limits = heard(**{"limit:rate:queue=emails": "100/min burst 3"})
    assert limits.of(replace(SEND, job_type="dear", cost=5), "acme").cost == 3
    assert limits.of(replace(SEND, job_type="cheap", cost=2), "acme").cost == 2


def test_what_is_not_understood_changes_nothing_and_is_told(
    caplog: pytest.LogCaptureFixture, expected_errors: object
) -> None:
    expected_errors.add("is not understood")  # type: ignore[attr-defined]
    limits = DeliveryLimits()
    with caplog.at_level(logging.ERROR):
        limits.hear([said("limit:rate:queue=emails", "many"), said("limit:rate:moon=full", "1/s")])
        limits.hear([said("limit:speed:queue=emails", "1/s"), said("limit:rate:queue=emails", "5/s")])
    assert len(caplog.records) == 3
    assert names(limits, SEND) == {"rate:queue=emails": Limit("rate:queue=emails", 5, SECOND)}
    assert not limits.hear([said("cancel:acme:1", "{}")])


def test_what_is_remembered_is_bounded() -> None:
    limits = DeliveryLimits()
    for number in range(KNOWN_MAX + 10):
        limits.of(SYNC, f"org-{number}")
    assert len(limits._known) <= KNOWN_MAX
    assert len(limits._shared) <= KNOWN_MAX + 1


@pytest.mark.parametrize(
    ("by", "held"),
    [
        ("rate:queue=emails", "all"),
        ("concurrency:queue=emails", "all"),
        ("rate:organization=acme", "organization"),
        ("rate:queue=emails,organization=acme", "organization"),
        ("rate:type=email.send", "delivery"),
        ("rate:type=email.send,organization=acme", "delivery"),
        ("gate:provider=mail", "delivery"),
    ],
)
def test_a_limit_holds_back_no_more_than_falls_under_it(by: str, held: str) -> None:
    assert holds(by) == held


@pytest.mark.parametrize(
    ("text", "rate", "again"),
    [
        ("20/s", Rate(20, SECOND), "20/s"),
        ("100/min", Rate(100, MINUTE), "100/m"),
        ("10/5m burst 3", Rate(10, 5 * MINUTE, 3), "10/5m burst 3"),
        ("1/1.5h", Rate(1, timedelta(hours=1.5)), "1/90m"),
        (" 3 / 250ms", Rate(3, timedelta(milliseconds=250)), "3/250ms"),
        ("5/d", Rate(5, timedelta(days=1)), "5/d"),
    ],
)
def test_rates_are_texts(text: str, rate: Rate, again: str) -> None:
    assert Rate.of_text(text) == rate
    assert str(rate) == again
    assert Rate.of_text(again) == rate


@pytest.mark.parametrize(
    "text", ["", "20", "20/", "0/s", "-1/s", "1/0s", "1/s burst 0", "1/month", "9/s burst"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|above zero|at least 1"):
        allowed_of_text("rate", text)


@given(st.integers(1, 10_000), st.integers(1, 10**9), st.none() | st.integers(1, 100))
def test_whatever_is_allowed_survives_being_said(count: int, per_ms: int, burst: int | None) -> None:
    rate = Rate(count, timedelta(milliseconds=per_ms), burst)
    rule = Rule("rate", Scope("emails", organization="*"), rate)
    try:
        rate.limit("name")
    except ValueError:
        return
    assert Rule.of_said(rule.name, allowed_text(rule.allowed)) == rule
    jobs = Rule("concurrency", Scope(provider="stripe"), count)
    assert Rule.of_said(jobs.name, allowed_text(count)) == jobs


def test_a_scope_that_holds_for_no_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="a limit holds for a queue"):
        check_scope({}, types=[], providers=[])
    with pytest.raises(ConfigError, match=r"unknown provider 'strip'; expected one of mail, stripe, or \*"):
        check_scope({"provider": "strip"}, types=[], providers=["stripe", "mail"])
    assert check_scope({"queue": "*", "organization": "acme"}, types=[], providers=[]) == Scope(
        queue="*", organization="acme"
    )


def test_all_rules_are_listed_with_whose_they_are() -> None:
    rules = Rules(own_rules())
    rules.hear([said("limit:rate:queue=emails", "1/s"), said("limit:concurrency:queue=emails", "2")])
    assert [(str(rule.scope), rule.kind, allowed_text(rule.allowed), mine) for rule, mine in rules.all()] == [
        ("queue=ai-processing", "rate", "10/m", False),
        ("queue=document-processing", "rate", "20/s", False),
        ("queue=emails", "concurrency", "2", True),
        ("queue=emails", "rate", "1/s", True),
        ("queue=integrations,organization=*", "rate", "10/s", False),
    ]


# -- while Redis is away --------------------------------------------------------------------------------


def test_a_share_of_a_limit_is_what_one_worker_may_have() -> None:
    limits = (
        Limit("a", 100, MINUTE),
        Limit("b", 1, SECOND),
        Concurrency("c", 8),
        Concurrency("d", 1),
        Gate("e"),
    )
    assert shares(limits, lambda name: 3) == (
        Limit("a", 100, 3 * MINUTE, 33),
        Limit("b", 1, 3 * SECOND, 1),
        Concurrency("c", 2),
        Concurrency("d", 1),
        Gate("e"),
    )
    assert shares(limits, lambda name: 1) == (
        Limit("a", 100, MINUTE, 100), Limit("b", 1, SECOND, 1), *limits[2:],
    )  # fmt: skip


def test_a_worker_alone_holds_its_share() -> None:
    now = [datetime(2026, 4, 15, tzinfo=UTC)]
    local = LocalLimits(lambda: now[0])
    rate, places = Limit("rate", 20, 10 * SECOND), Concurrency("places", 4)
    refuses = local.beside([("acme:0", (places,))], lambda name: 2)
    answers = [refuses(Candidate(f"acme:{n}", "", (rate, places))) for n in range(1, 4)]
    assert answers[0] is None
    assert [one.by for one in answers[1:] if one] == ["places", "places"]
    refuses = local.beside([], lambda name: 2)
    taken = [refuses(Candidate(f"globex:{n}", "", (rate,))) for n in range(12)]
    assert taken[:9] == [None] * 9, "one of its ten was taken before"
    assert taken[9:] == [Limited(SECOND, "rate")] * 3
    now[0] += SECOND
    assert local.beside([], lambda name: 2)(Candidate("globex:9", "", (rate,))) is None
    dear = Candidate("globex:dear", "", (Limit("dear", 4, SECOND),), 4)
    assert local.beside([], lambda name: 4)(dear) is None, "a job costs no more than the share ever gives"


async def test_live_workers_share_by_what_a_limit_holds_for() -> None:
    admission = ModelAdmission(clock=Clock())
    others = ["primary/2", "primary/3", "ai/1"]
    for other in others:
        await admission.present(other, MINUTE)
    live = LiveWorkers("primary", "1", admission)
    assert live.sharing("rate:queue=emails") == 1
    import asyncio

    running = asyncio.create_task(live.run())
    await eventually(lambda: live.sharing("rate:queue=emails") == 3)
    assert live.sharing("rate:type=email.send,organization=acme") == 3
    assert live.sharing("rate:organization=acme") == live.sharing("concurrency:provider=mail") == 4
    await cancelled(running)
    await live.leave()
    assert sorted(await admission.present("ai/1", MINUTE)) == sorted(others)
