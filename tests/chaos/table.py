"""The table that is printed: fault x invariant x figure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.verdict import Verdict


@dataclass
class Report:
    """What came of one fault."""

    fault: str
    seed: int
    seconds: float
    verdicts: list[Verdict] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    history: Path | None = None
    error: str = ""
    """The scene itself broke: nothing was judged."""

    @property
    def holds(self) -> bool:
        return not self.error and all(verdict.holds for verdict in self.verdicts)

    def complaint(self) -> str:
        """Return what is wrong, with the story of the job, or nothing."""
        lines = [self.error] if self.error else []
        for verdict in self.verdicts:
            if not verdict.holds:
                lines += [f"{self.fault}: {verdict.invariant} violated: {verdict.violation}", *verdict.story]
        if lines:
            lines.append(f"seed {self.seed}, history {self.history}")
        return "\n".join(lines)

    def as_json(self) -> str:
        """Return everything on one line, and whether it holds and what is wrong beside it."""
        return json.dumps({**asdict(self), "holds": self.holds, "complaint": self.complaint()}, default=str)


def draw(reports: Sequence[Report], console: Console) -> None:
    """Print the table, and after it what is wrong."""
    table = Table("fault", "invariant", "figure", "", title=None)
    for report in reports:
        name = f"{report.fault}\nseed {report.seed}, {report.seconds:.0f} s"
        rows = [(one.invariant, one.figure, "ok" if one.holds else "VIOLATED") for one in report.verdicts]
        rows += [(what, str(figure), "") for what, figure in report.notes.items()]
        if report.error:
            rows.append(("scene", report.error.splitlines()[-1], "BROKEN"))
        for index, (invariant, figure, sign) in enumerate(rows):
            table.add_row(name if index == 0 else "", invariant, figure, sign)
        table.add_section()
    console.print(table, markup=False)
    for report in reports:
        if complaint := report.complaint():
            console.print(complaint, markup=False, highlight=False, soft_wrap=True)
