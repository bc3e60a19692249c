"""Functions for tests that run them in processes of their own, where only a module's functions can be found."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from providers.errors import RateLimited, Refused, Unavailable
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Job, Payload, Result


class Input(Payload):
    """What to do, and with what."""

    what: str = "succeed"
    number: int = 0
    text: str = ""


class Output(Result):
    """A number, and a text."""

    number: int
    text: str = ""


class Odd(Transient):
    """An error that cannot be made from its message alone, as handlers derive them."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}", delay=timedelta(seconds=7))


class Unpicklable(Poison):
    """An error that holds what no process can send to another."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.file = Path("/dev/null").open()  # noqa: SIM115


def run(job: Job[Input]) -> Output | None:
    """Do what the input says."""
    number, text = job.payload.number, job.payload.text
    match job.payload.what:
        case "succeed":
            job.progress(0.5, text)
            job.follow_up(Input(what="next", number=number))
            return Output(number=number, text=text)
        case "sleep":
            time.sleep(number / 1000)
        case "wait":
            job.progress(0.0)
            while not Path(text).exists():
                time.sleep(0.001)
            return Output(number=number)
        case "pid":
            return Output(number=os.getpid())
        case "end":
            os._exit(number)
        case "exit":
            raise SystemExit(number)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case what:
            raise ERRORS[what](text)
    return None


ERRORS: dict[str, Any] = {
    "transient": lambda text: Transient(text, delay=timedelta(seconds=3)),
    "snooze": lambda text: Snooze(text, delay=timedelta(seconds=4)),
    "limited": lambda text: RateLimited(text, timedelta(seconds=5)),
    "unavailable": Unavailable,
    "refused": Refused,
    "poison": Poison,
    "bug": KeyError,
    "odd": lambda text: Odd(1, 2),
    "unpicklable": Unpicklable,
}
