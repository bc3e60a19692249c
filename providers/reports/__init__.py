"""Financial reports: bookings in, a PDF or a workbook out."""

from typing import Literal

from providers.reports.statement import Entry, Kind, Report

__all__ = ["Entry", "Kind", "Report", "produce"]


def produce(report: Report, form: Literal["pdf", "xlsx"]) -> bytes:
    """Return the report as a file; the same report has the same bytes every time."""
    # Both libraries are large, and only the process that makes a report needs one of them.
    if form == "pdf":
        from providers.reports.pdf import write_pdf

        return write_pdf(report)
    from providers.reports.xlsx import write_xlsx

    return write_xlsx(report)
