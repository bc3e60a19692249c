"""Standing still, told from having nothing to do, from being slow, and from a broker that is away."""

import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from streams.progress import LONGEST_STEP_S, LifeSign, Progress, Watchdog

MINUTE = timedelta(minutes=1)


class Part:
    """Something that goes on, or not."""

    def __init__(self) -> None:
        self.busy = True
        self.done = 0
        self.broker: str | None = None
        self.asked = 0
        sign = LifeSign("it stands", could=lambda: self.busy, count=lambda: self.done, limit=MINUTE)
        self.progress = Progress([sign], self.trouble, now_s=0.0)
        self.now_s = 0.0

    async def trouble(self) -> str | None:
        self.asked += 1
        return self.broker

    async def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            await self.progress.look(self.now_s)


@pytest.fixture
def part() -> Part:
    return Part()


async def test_it_is_stalled_at_its_limit_and_beyond_help_at_twice_that(part: Part) -> None:
    await part.pass_time(29)
    assert part.asked == 0, "the broker is asked about a suspicion only"
    await part.pass_time(30)
    assert part.progress.stalled == []
    await part.pass_time(1)
    assert part.progress.stalled == ["it stands for 60 s"]
    await part.pass_time(59)
    assert not part.progress.beyond_help
    await part.pass_time(1)
    assert part.progress.beyond_help
    assert part.progress.stalled == ["it stands for 120 s"]


async def test_whatever_it_does_begins_the_time_anew(part: Part) -> None:
    for _ in range(5):
        await part.pass_time(59)
        part.done += 1
    await part.pass_time(60)
    assert part.progress.stalled == []
    await part.pass_time(1)
    part.done += 1
    await part.pass_time(1)
    assert part.progress.stalled == []


async def test_having_nothing_to_do_is_no_standing_still(part: Part) -> None:
    part.busy = False
    await part.pass_time(1000)
    part.busy = True
    await part.pass_time(59)
    part.busy = False
    await part.pass_time(1)
    part.busy = True
    await part.pass_time(59)
    assert part.progress.stalled == []
    await part.pass_time(1)
    assert part.progress.stalled


@pytest.mark.parametrize("away", range(31, 100, 7))
async def test_while_the_broker_is_away_nobody_is_to_blame_and_afterwards_there_is_time_again(
    part: Part, away: int
) -> None:
    part.broker = "Kafka does not answer"
    await part.pass_time(away)
    assert part.progress.stalled == []
    assert not part.progress.beyond_help
    part.broker = None
    await part.pass_time(29)
    assert part.progress.stalled == []
    await part.pass_time(60)
    assert part.progress.stalled


async def test_a_broker_that_goes_away_later_takes_the_blame_back(part: Part) -> None:
    await part.pass_time(119)
    part.broker = "Kafka does not answer"
    await part.pass_time(1)
    assert part.progress.stalled == []
    assert not part.progress.beyond_help


async def test_a_process_that_was_stopped_for_an_hour_has_not_stood_still_for_an_hour(part: Part) -> None:
    await part.pass_time(10)
    await part.progress.look(part.now_s + 3600)
    assert part.progress.stalled == []
    part.now_s += 3600
    await part.pass_time(int(60 - 10 - LONGEST_STEP_S) - 1)
    assert part.progress.stalled == []
    await part.pass_time(1)
    assert part.progress.stalled


class TestWatchdog:
    def test_a_loop_that_stands_still_is_told_and_one_that_beats_is_not(self) -> None:
        ended = threading.Event()
        told: list[str] = []

        def end(why: str) -> None:
            told.append(why)
            ended.set()

        watchdog = Watchdog(timedelta(seconds=1), every=timedelta(milliseconds=50), end=end)
        watchdog.start()
        for _ in range(50):
            watchdog.beat()
            assert not ended.wait(0.03)
        assert ended.wait(10)
        assert told == ["the event loop has stood still for 1 s"]

    def test_once_stopped_it_ends_nothing(self) -> None:
        told: list[str] = []
        watchdog = Watchdog(timedelta(seconds=0.1), every=timedelta(seconds=0.1), end=told.append)
        watchdog.start()
        watchdog.stop()
        watchdog._thread.join(10)
        assert told == []

    def test_it_ends_a_process_whose_main_thread_holds_the_locks_of_logging(self) -> None:
        program = """
import logging, time
from datetime import timedelta
from streams.progress import Watchdog
Watchdog(timedelta(seconds=0.2), every=timedelta(seconds=0.1)).start()
logging.basicConfig()
logging.getLogger().handlers[0].acquire()
def stands_still():
    time.sleep(60)
stands_still()
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert done.stderr.startswith("CRITICAL the event loop has stood still for 0 s; it ends at once")
        assert "in stands_still" in done.stderr
