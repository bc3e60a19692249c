"""How answers are shown: a table for people, JSON lines for programs, one sentence for nothing."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | int | float | datetime | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of one kind; `columns` maps a heading to what stands below it, `nothing` is said when there are none."""

    rows: Sequence[Any]
    columns: Mapping[str, Callable[[Any], Cell]]
    nothing: str

    def show(self, as_json: bool) -> None:
        """Print the rows: as JSON lines, or as a table."""
        if as_json:
            for row in self.rows:
                click.echo(json_of(row))
        elif not self.rows:
            click.echo(self.nothing)
        else:
            self.draw()

    def draw(self, title: str | None = None) -> None:
        table = Table(title=title, title_justify="left", header_style="bold")
        for heading in self.columns:
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*(text_of(cell(row)) for cell in self.columns.values()))
        console().print(table)


def console() -> Console:
    """Return where tables go; wide enough not to fold them when nobody looks at a screen."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def text_of(cell: Cell) -> Text:
    """Return a cell as people read it. What customers sent is shown, never obeyed: no markup, no escapes."""
    match cell:
        case None:
            return Text("")
        case datetime():
            return Text(cell.strftime("%Y-%m-%d %H:%M:%S"))
        case float():
            return Text(f"{cell:,.1f}", justify="right")
        case int():
            return Text(f"{cell:,}", justify="right")
        case _:
            return Text("".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in cell))


def json_of(value: Any) -> str:
    """Return a dataclass, or a mapping of such, as one line of JSON; instants in ISO 8601."""
    return json.dumps(_plain(value), default=datetime.isoformat, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
