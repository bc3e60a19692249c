"""A report as a PDF."""

import io
from datetime import date
from functools import cache
from importlib.resources import as_file, files
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import LongTable, Paragraph, SimpleDocTemplate, Spacer, TableStyle

from providers.money import readable
from providers.reports.statement import Cell, Money, Report, Row, statement

MARGIN = 18 * mm
FONT = "NotoSans"
INK, LINE, SHADE = colors.HexColor("#111827"), colors.HexColor("#d1d5db"), colors.HexColor("#f3f4f6")


def write_pdf(report: Report) -> bytes:
    """Return the report as a PDF on A4 pages, each with its number and their count."""
    _register_font()
    table = statement(report)
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN,
        title=report.title,
        subject=report.period,
        # No clock and no random id: the same report is the same file.
        invariant=1,
    )
    width = A4[0] - 2 * MARGIN
    right_from = next(i for i, column in enumerate(table.columns) if column in _AMOUNT_COLUMNS)
    rows = [list(table.columns), *(_printed(row, report.currency) for row in table.rows)]
    grid = LongTable(rows, colWidths=[width * share for share in table.shares], repeatRows=1)
    grid.setStyle(TableStyle(_style(table.rows, right_from)))
    story = [
        Paragraph(escape(report.title), _TITLE),
        Paragraph(f"{report.period} · amounts in {report.currency}", _SUBTITLE),
        Spacer(1, 5 * mm),
        grid,
    ]
    document.build(story, canvasmaker=_NumberedCanvas)
    return buffer.getvalue()


_AMOUNT_COLUMNS = {"Amount", "In", "Out", "Net", "Balance"}
_TITLE = ParagraphStyle("title", fontName=FONT, fontSize=17, leading=22, textColor=INK)
_SUBTITLE = ParagraphStyle("subtitle", fontName=FONT, fontSize=9.5, leading=13, textColor=colors.grey)
_CELL = ParagraphStyle("cell", fontName=FONT, fontSize=8.5, leading=11, textColor=INK, splitLongWords=True)
_AMOUNT = ParagraphStyle("amount", parent=_CELL, alignment=TA_RIGHT)


@cache
def _register_font() -> None:
    """Make a font with Latin, Greek and Cyrillic known; those built into PDF stop at Western Europe."""
    with as_file(files("fontpkg_noto_sans") / "files" / "NotoSans[wdth,wght].ttf") as path:
        pdfmetrics.registerFont(TTFont(FONT, str(path)))


def _printed(row: Row, currency: str) -> list[Any]:
    return [_printed_cell(cell, currency) for cell in row.cells]


def _printed_cell(cell: Cell, currency: str) -> Any:
    if isinstance(cell, Money):
        return readable(cell.minor, currency)
    if isinstance(cell, date):
        return cell.isoformat()
    # A paragraph wraps; its text is markup, so what came from outside is escaped.
    return Paragraph(escape(cell), _CELL) if cell else ""


def _style(rows: list[Row], right_from: int) -> list[tuple[Any, ...]]:
    commands: list[tuple[Any, ...]] = [
        ("FONT", (0, 0), (-1, -1), FONT, 8.5),
        ("TEXTCOLOR", (0, 0), (-1, -1), INK),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("ALIGN", (right_from, 0), (-1, -1), "RIGHT"),
        ("BACKGROUND", (0, 0), (-1, 0), SHADE),
        ("LINEBELOW", (0, 0), (-1, -1), 0.25, LINE),
    ]
    for number, row in enumerate(rows, start=1):
        if row.style == "total":
            commands.append(("LINEABOVE", (0, number), (-1, number), 0.8, INK))
        if row.style != "entry":
            commands.append(("BACKGROUND", (0, number), (-1, number), SHADE))
    return commands


class _NumberedCanvas(Canvas):  # type: ignore[misc]
    """Keeps every page until their number is known, then writes `Page 2 of 7` under each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pages: list[dict[str, Any]] = []

    def showPage(self) -> None:
        self._pages.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        for number, page in enumerate(self._pages, start=1):
            self.__dict__.update(page)
            self.setFont(FONT, 8)
            self.setFillColor(colors.grey)
            self.drawRightString(A4[0] - MARGIN, 10 * mm, f"Page {number} of {len(self._pages)}")
            super().showPage()
        super().save()
