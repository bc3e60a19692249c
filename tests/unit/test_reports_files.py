"""Reports: the sums are right, the files open, and nothing in them runs."""

import io
import re
from datetime import date
from zipfile import ZipFile

import openpyxl
import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.reports import Entry, Kind, Report, produce
from providers.reports.statement import Money, Statement, statement

START, END = date(2026, 1, 1), date(2026, 3, 31)
ENTRIES = (
    Entry(date(2026, 1, 5), "Sales", 100_000, "Invoice 1"),
    Entry(date(2026, 1, 31), "Rent", -40_000, "January"),
    Entry(date(2026, 3, 1), "Sales", 50_050, "Invoice 2"),
    Entry(date(2026, 3, 2), "Löhne и зарплата", -10_025, "=HYPERLINK(\"http://x\")"),
)  # fmt: skip


def report(
    kind: Kind, entries: tuple[Entry, ...] = ENTRIES, currency: str = "USD", opening: int = 1_000
) -> Report:
    return Report(kind, "Q1 <b>2026</b> & more", START, END, currency, entries, opening)


def amounts(table: Statement, row: int) -> list[int]:
    return [cell.minor for cell in table.rows[row].cells if isinstance(cell, Money)]


def test_profit_and_loss_adds_up_by_account() -> None:
    table = statement(report("profit_and_loss"))
    assert [(row.cells[0], *amounts(table, number)) for number, row in enumerate(table.rows)] == [
        ("Income",), ("Sales", 150_050), ("Total income", 150_050),
        ("Expenses",), ("Löhne и зарплата", 10_025), ("Rent", 40_000), ("Total expenses", 50_025),
        ("Net profit", 100_025),
    ]  # fmt: skip


def test_cash_flow_adds_up_by_month_and_carries_the_balance() -> None:
    table = statement(report("cash_flow"))
    assert [(row.cells[0], *amounts(table, number)) for number, row in enumerate(table.rows)] == [
        ("Opening balance", 1_000),
        ("2026-01", 100_000, 40_000, 60_000, 61_000),
        ("2026-03", 50_050, 10_025, 40_025, 101_025),
        ("Total", 150_050, 50_025, 100_025, 101_025),
    ]


def test_transactions_run_in_order_whatever_order_they_came_in() -> None:
    table = statement(report("transactions"))
    assert table == statement(report("transactions", ENTRIES[::-1]))
    assert [amounts(table, number)[-1] for number in range(len(table.rows))] == [
        1_000, 101_000, 61_000, 111_050, 101_025, 101_025,
    ]  # fmt: skip


entries = st.lists(
    st.builds(
        Entry,
        st.dates(START, END),
        st.text(max_size=8),
        st.integers(-(10**9), 10**9),
        st.text(max_size=12),
    ),
    max_size=12,
).map(tuple)


@settings(max_examples=40)
@given(entries=entries, kind=st.sampled_from(["profit_and_loss", "cash_flow", "transactions"]))
def test_every_report_ends_in_the_same_total_and_every_formula_in_its_value(
    entries: tuple[Entry, ...], kind: Kind
) -> None:
    table = statement(report(kind, entries))
    total = sum(entry.amount_minor for entry in entries)
    assert total in amounts(table, len(table.rows) - 1)
    sheet = openpyxl.load_workbook(io.BytesIO(produce(report(kind, entries), "xlsx"))).active
    for number, row in enumerate(table.rows):
        for column, cell in enumerate(row.cells, start=1):
            if isinstance(cell, Money):
                assert evaluate(sheet, sheet.cell(number + 5, column).value) == pytest.approx(
                    cell.minor / 100
                )
    produce(report(kind, entries), "pdf")


def evaluate(sheet: object, value: object) -> float:
    """Compute the three shapes of formula that a report has: a sum over a range, a sum, a difference."""
    if not isinstance(value, str):
        return float(value)  # type: ignore[arg-type]
    formula = value.removeprefix("=")
    if formula.startswith("SUM("):
        cells = sheet[formula[4:-1]]  # type: ignore[index]
        column = cells if isinstance(cells, tuple) else ((cells,),)
        return sum(evaluate(sheet, cell.value) for (cell,) in column)
    sign = "+" if "+" in formula else "-"
    first, _, second = formula.partition(sign)
    values = [evaluate(sheet, sheet[name].value) for name in (first, second) if name]  # type: ignore[index]
    return values[0] if len(values) == 1 else values[0] + (values[1] if sign == "+" else -values[1])


def test_a_workbook_is_typed_frozen_and_runs_nothing_from_outside() -> None:
    hostile = tuple(
        Entry(START, text, 100, text)
        for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "#REF!", "bell\x07", "x" * 40_000)
    )
    sheet = openpyxl.load_workbook(io.BytesIO(produce(report("transactions", hostile), "xlsx"))).active
    assert sheet.freeze_panes == "A5"
    rows = list(sheet.iter_rows(min_row=6, max_row=5 + len(hostile)))
    for row in rows:
        assert row[0].is_date
        assert row[1].data_type == row[2].data_type == "s"
        assert row[3].data_type == "n"
        assert row[4].data_type == "f"
        assert len(row[1].value) <= 32_767
    quoted = {row[1].value: row[1].quotePrefix for row in rows}
    assert all(quoted[text] for text in ("=1+1", "+1", "-1", "@SUM(A1)"))


def test_a_workbook_holds_no_moment_but_the_end_of_its_period() -> None:
    content = produce(report("transactions"), "xlsx")
    with ZipFile(io.BytesIO(content)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        moments = re.findall(r"\d{4}-\d\d-\d\dT[\d:]+Z", archive.read("docProps/core.xml").decode())
    assert moments == [f"{END}T00:00:00Z"] * 2
    assert content == produce(report("transactions"), "xlsx")


@pytest.mark.parametrize("kind", ["profit_and_loss", "cash_flow", "transactions"])
def test_a_pdf_shows_title_totals_and_page_numbers_and_repeats_bit_for_bit(kind: Kind) -> None:
    many = tuple(Entry(START, f"Account {n}", n + 1, "<para>&nbsp;") for n in range(120))
    content = produce(report(kind, many), "pdf")
    assert content == produce(report(kind, many), "pdf")
    document = pypdfium2.PdfDocument(content)
    pages = [page.get_textpage().get_text_range() for page in document]
    assert "Q1 <b>2026</b> & more" in pages[0]
    assert "2026-01-01 to 2026-03-31" in pages[0]
    assert "72.60" in pages[-1]
    for number, page in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in page
    if kind == "transactions":
        assert len(pages) > 1
        assert all("Description" in page for page in pages)
        assert "<para>&nbsp;" in pages[0]


def test_a_pdf_shows_letters_beyond_western_europe() -> None:
    document = pypdfium2.PdfDocument(produce(report("profit_and_loss"), "pdf"))
    assert "Löhne и зарплата" in document[0].get_textpage().get_text_range()


def test_a_currency_has_its_own_decimals() -> None:
    entries = (Entry(START, "売上 / Sales", 1_234_567),)
    for currency, shown in (("JPY", "1,234,567"), ("USD", "12,345.67"), ("KWD", "1,234.567")):
        document = pypdfium2.PdfDocument(produce(report("cash_flow", entries, currency, 0), "pdf"))
        assert shown in document[0].get_textpage().get_text_range()
