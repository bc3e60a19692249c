"""What a report says, apart from how it looks: bookings summed up into a table."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

Kind = Literal["profit_and_loss", "cash_flow", "transactions"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One booking; positive amounts come in, negative ones go out."""

    date: date
    account: str
    amount_minor: int
    description: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What to report on."""

    kind: Kind
    title: str
    start: date
    end: date
    currency: str
    entries: tuple[Entry, ...]
    opening_balance_minor: int = 0

    @property
    def period(self) -> str:
        return f"{self.start.isoformat()} to {self.end.isoformat()}"


@dataclass(frozen=True, slots=True)
class Money:
    """An amount, and the spreadsheet formula it follows from, if any.

    `{3}` in a formula stands for the sheet row of the statement's row 3, counted from 0.
    """

    minor: int
    formula: str | None = None


Cell = str | date | Money | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a statement."""

    cells: tuple[Cell, ...]
    style: Literal["entry", "heading", "total"] = "entry"


@dataclass(slots=True)
class Statement:
    """A table: column titles, the share of the width each column gets, and rows."""

    columns: tuple[str, ...]
    shares: tuple[float, ...]
    rows: list[Row] = field(default_factory=list)

    def add(self, *cells: Cell, style: Literal["entry", "heading", "total"] = "entry") -> int:
        """Append a row and return its number."""
        self.rows.append(Row(cells, style))
        return len(self.rows) - 1


def statement(report: Report) -> Statement:
    """Return the table of a report; the order of its bookings does not matter."""
    entries = sorted(report.entries, key=lambda e: (e.date, e.account, e.description, e.amount_minor))
    if report.kind == "profit_and_loss":
        return _profit_and_loss(entries)
    if report.kind == "cash_flow":
        return _cash_flow(entries, report.opening_balance_minor)
    return _transactions(entries, report.opening_balance_minor)


def _profit_and_loss(entries: Iterable[Entry]) -> Statement:
    income: dict[str, int] = defaultdict(int)
    expenses: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry.amount_minor >= 0:
            income[entry.account] += entry.amount_minor
        else:
            expenses[entry.account] -= entry.amount_minor
    table = Statement(("Account", "Amount"), (0.75, 0.25))
    earned = _section(table, "Income", income)
    spent = _section(table, "Expenses", expenses)
    profit = sum(income.values()) - sum(expenses.values())
    table.add("Net profit", Money(profit, f"=B{{{earned}}}-B{{{spent}}}"), style="total")
    return table


def _section(table: Statement, title: str, accounts: dict[str, int]) -> int:
    table.add(title, None, style="heading")
    rows = [table.add(account, Money(amount)) for account, amount in sorted(accounts.items())]
    return table.add(f"Total {title.lower()}", _sum("B", rows, sum(accounts.values())), style="total")


def _cash_flow(entries: Iterable[Entry], opening: int) -> Statement:
    months: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        month = months[entry.date.strftime("%Y-%m")]
        month[0 if entry.amount_minor >= 0 else 1] += abs(entry.amount_minor)
    table = Statement(("Month", "In", "Out", "Net", "Balance"), (0.2, 0.2, 0.2, 0.2, 0.2))
    last = table.add("Opening balance", None, None, None, Money(opening), style="heading")
    balance, rows = opening, []
    for name, (came_in, went_out) in sorted(months.items()):
        balance += came_in - went_out
        row = last + 1
        table.add(
            name,
            Money(came_in),
            Money(went_out),
            Money(came_in - went_out, f"=B{{{row}}}-C{{{row}}}"),
            Money(balance, f"=E{{{last}}}+D{{{row}}}"),
        )
        rows.append(row)
        last = row
    came_in, went_out = (sum(month[side] for month in months.values()) for side in (0, 1))
    table.add(
        "Total",
        _sum("B", rows, came_in),
        _sum("C", rows, went_out),
        _sum("D", rows, came_in - went_out),
        Money(balance, f"=E{{{last}}}"),
        style="total",
    )
    return table


def _transactions(entries: Iterable[Entry], opening: int) -> Statement:
    table = Statement(("Date", "Account", "Description", "Amount", "Balance"), (0.13, 0.22, 0.33, 0.16, 0.16))
    last = table.add(None, "Opening balance", None, None, Money(opening), style="heading")
    balance, total, rows = opening, 0, []
    for entry in entries:
        balance += entry.amount_minor
        total += entry.amount_minor
        row = last + 1
        table.add(
            entry.date,
            entry.account,
            entry.description,
            Money(entry.amount_minor),
            Money(balance, f"=E{{{last}}}+D{{{row}}}"),
        )
        rows.append(row)
        last = row
    table.add(None, "Total", None, _sum("D", rows, total), Money(balance, f"=E{{{last}}}"), style="total")
    return table


def _sum(column: str, rows: list[int], value: int) -> Money:
    """Return a total over consecutive rows, which may be none."""
    return Money(value, f"=SUM({column}{{{rows[0]}}}:{column}{{{rows[-1]}}})") if rows else Money(value)
