"""The catalogue: every fault by its name."""

import importlib
import os
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.verdict import Verdict

if TYPE_CHECKING:
    from tests.chaos.scene import Scene

LONG = bool(os.environ.get("CHAOS_LONG"))
"""Whether faults that last for minutes last as long as they are meant to; without it they are cut short."""


@dataclass
class Figures:
    """What a fault measured beyond what the oracle judges every time."""

    notes: dict[str, object] = field(default_factory=dict)
    checks: list[Verdict] = field(default_factory=list)

    def note(self, name: str, figure: object) -> None:
        """Keep a figure for the table."""
        self.notes[name] = figure

    def check(self, invariant: str, holds: bool, figure: object, otherwise: str = "") -> None:
        """Judge an invariant of this fault's own; `otherwise` says what it means when it does not hold."""
        self.checks.append(Verdict(invariant, str(figure), "" if holds else otherwise or f"got {figure}"))


Scenario = Callable[["Scene", random.Random], Figures]


@dataclass(frozen=True)
class Fault:
    """One entry of the catalogue; `seconds` is about how long it takes.

    `alone` says that it judges how soon something happens, on a machine that has nothing else to do.
    """

    name: str
    seconds: int
    ci: bool
    alone: bool
    act: Scenario

    @property
    def summary(self) -> str:
        return (self.act.__doc__ or "").strip().splitlines()[0]


CATALOGUE: dict[str, Fault] = {}


def fault(
    name: str, *, seconds: int, ci: bool = False, alone: bool = False
) -> Callable[[Scenario], Scenario]:
    """Enter a function into the catalogue; `ci` puts it into the subset that every test run plays."""

    def enter(act: Scenario) -> Scenario:
        assert name not in CATALOGUE, f"{name} is in the catalogue already"
        CATALOGUE[name] = Fault(name, seconds, ci, alone, act)
        return act

    return enter


def load() -> dict[str, Fault]:
    """Return the whole catalogue: every module of this folder enters its own."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return CATALOGUE
