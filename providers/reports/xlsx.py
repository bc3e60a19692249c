"""A report as an Excel workbook."""

import io
from datetime import date, datetime, time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from openpyxl import Workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.cell.cell import Cell as SheetCell
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet
from openpyxl.writer.excel import ExcelWriter

from providers.money import major, minor_digits
from providers.reports.statement import Cell, Money, Report, Row, statement

LONGEST_CELL = 32_767
"""The most characters that Excel keeps in one cell."""

HEADER_ROW = 4
_SHEET_WIDTH_CHARACTERS = 110
_SHADE = PatternFill("solid", fgColor="F3F4F6")
_BOLD = Font(bold=True)


def write_xlsx(report: Report) -> bytes:
    """Return the report as a workbook: typed cells, formulas for what is computed, the header frozen."""
    table = statement(report)
    book = Workbook()
    # The library would put the present moment in.
    book.properties.created = book.properties.modified = datetime.combine(report.end, time())
    book.properties.title = _clean(report.title)
    sheet = book.active
    sheet.title = report.kind.replace("_", " ").capitalize()
    _put_text(sheet.cell(1, 1), report.title)
    sheet.cell(1, 1).font = Font(bold=True, size=14)
    _put_text(sheet.cell(2, 1), f"{report.period} · amounts in {report.currency}")
    for column, title in enumerate(table.columns, start=1):
        cell = sheet.cell(HEADER_ROW, column)
        _put_text(cell, title)
        cell.font, cell.fill = _BOLD, _SHADE
    first = HEADER_ROW + 1
    sheet_rows = [first + number for number in range(len(table.rows))]
    for number, row in zip(sheet_rows, table.rows, strict=True):
        _write_row(sheet, number, row, sheet_rows, report.currency)
    for column, share in enumerate(table.shares, start=1):
        sheet.column_dimensions[get_column_letter(column)].width = max(12, share * _SHEET_WIDTH_CHARACTERS)
    sheet.freeze_panes = sheet.cell(first, 1)
    sheet.print_title_rows = f"{HEADER_ROW}:{HEADER_ROW}"
    sheet.page_setup.fitToHeight = 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True
    buffer = io.BytesIO()
    # `Workbook.save` would put it in again.
    ExcelWriter(book, _Archive(buffer, "w")).save()
    return buffer.getvalue()


class _Archive(ZipFile):
    """Keeps no time of its entries: the same report is the same file."""

    def writestr(self, name: str, data: bytes | str) -> None:  # type: ignore[override]
        super().writestr(ZipInfo(name), data, ZIP_DEFLATED)

    def write(self, path: str, name: str) -> None:  # type: ignore[override]
        self.writestr(name, Path(path).read_bytes())


def _write_row(sheet: Worksheet, number: int, row: Row, sheet_rows: list[int], currency: str) -> None:
    digits = minor_digits(currency)
    money_format = "#,##0" + ("." + "0" * digits if digits else "")
    for column, value in enumerate(row.cells, start=1):
        cell = sheet.cell(number, column)
        _put(cell, value, sheet_rows, currency)
        if isinstance(value, Money):
            cell.number_format = f"{money_format};[Red]-{money_format}"
        if row.style != "entry":
            cell.font, cell.fill = _BOLD, _SHADE
        if row.style == "total":
            cell.border = Border(top=Side("thin"))


def _put(cell: SheetCell, value: Cell, sheet_rows: list[int], currency: str) -> None:
    if isinstance(value, Money):
        cell.value = value.formula.format(*sheet_rows) if value.formula else major(value.minor, currency)
    elif isinstance(value, date):
        cell.value = value
        cell.number_format = "yyyy-mm-dd"
    elif value:
        _put_text(cell, value)
        cell.alignment = Alignment(wrap_text=True, vertical="top")


def _put_text(cell: SheetCell, text: str) -> None:
    """Write text as text, whatever it starts with: `=1+1` from outside must never become a formula.

    The quote prefix makes Excel keep it text when the cell is edited later.
    """
    cell.value = _clean(text)
    cell.data_type = "s"
    cell.quotePrefix = text.startswith(("=", "+", "-", "@"))


def _clean(text: str) -> str:
    legal: str = ILLEGAL_CHARACTERS_RE.sub("", text)
    return legal[:LONGEST_CELL]
