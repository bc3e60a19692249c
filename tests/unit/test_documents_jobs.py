"""The document handlers, from an uploaded file to the fields of an invoice."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from demo.invoices import scanned_invoice, text_invoice
from providers.artifacts import NotFound, artifacts
from providers.classifier import Category, Fields, classifier
from providers.errors import Refused
from streams import agents
from streams.agents.documents import ClassifyDocument, OcrDocument, classify_document, ocr_document
from streams.errors import ConfigError
from streams.jobs import HANDLERS, Job


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path))


def job(payload: Any, organization_id: str = "acme") -> Job[Any]:
    return Job("job-1", "any", organization_id, payload, 1, 5, datetime.now(UTC), "job-1")


@pytest.mark.parametrize("make", [text_invoice, scanned_invoice])
def test_an_invoice_is_read_and_classified(make: Any) -> None:
    uri = artifacts().write("acme", "uploads/invoice.pdf", make("INV-2025-0042"))
    reading = job(OcrDocument(document_uri=uri, classify=True))
    read = ocr_document(reading)

    assert read.method == ("text" if make is text_invoice else "ocr")
    assert (read.pages, read.text_uri) == (1, "artifact://acme/text/job-1.txt")
    text = artifacts().read("acme", read.text_uri).decode()
    assert len(text) == read.characters > 300
    assert [follow_up.payload for follow_up in reading.follow_ups] == [
        ClassifyDocument(text_uri=read.text_uri)
    ]

    found = classify_document(job(reading.follow_ups[0].payload))
    assert found.category is Category.INVOICE
    assert found.confidence > 0.7
    assert (found.invoice_number, found.total, found.currency) == ("INV-2025-0042", 1488.44, "USD")
    assert (found.issued, found.vendor) == (date(2025, 3, 31), "Northwind Accounting LLC")


def test_classification_is_asked_for_only_when_wanted() -> None:
    uri = artifacts().write("acme", "invoice.pdf", text_invoice("A-1"))
    reading = job(OcrDocument(document_uri=uri))
    ocr_document(reading)
    assert reading.follow_ups == []


def test_refusals_pass_through() -> None:
    with pytest.raises(NotFound):
        ocr_document(job(OcrDocument(document_uri="artifact://acme/none.pdf")))
    uri = artifacts().write("acme", "invoice.pdf", b"garbage")
    with pytest.raises(Refused, match="does not belong to organization other"):
        ocr_document(job(OcrDocument(document_uri=uri), "other"))
    with pytest.raises(Refused, match="neither a PDF nor"):
        ocr_document(job(OcrDocument(document_uri=uri)))


@pytest.mark.parametrize("language", ["", "English", "en_US", "e", "en-US&features=x"])
def test_a_language_is_a_tag(language: str) -> None:
    with pytest.raises(ValidationError):
        OcrDocument(document_uri="artifact://acme/a", language=language)


def test_ocr_can_be_killed_at_its_timeout() -> None:
    assert HANDLERS["document.ocr"].runs_in == "process"
    assert HANDLERS["document.classify"].runs_in == "thread"


def test_an_extra_module_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "MODULES", ("streams.agents.documents",))
    agents.load(["streams.agents.documents"])
    with pytest.raises(ConfigError, match=r"HANDLER_MODULES names 'no\.such\.module'"):
        agents.load(["no.such.module"])


TEXTS = {
    Category.RECEIPT: (
        "Corner Shop\nStore #12 Register 3\nRECEIPT\nBread 3.20\nSubtotal 11.90\nTotal $12.50\nCash: $20.00\n"
        "Change: $7.50\n03/04/2025\nThank you for shopping with us",
        Fields(None, date(2025, 3, 4), 12.5, "USD", "Corner Shop"),
    ),
    Category.BANK_STATEMENT: (
        "First Example Bank\nAccount statement\nStatement date: 31.03.2025\nOpening balance 1.200,00 EUR\n"
        "Deposits 2.256,78 EUR\nClosing balance 3.456,78 EUR",
        Fields(None, date(2025, 3, 31), 3456.78, "EUR", "First Example Bank"),
    ),
    Category.INVOICE: (
        "Vendor: Foo GmbH\nInvoice #A-77\nIssued 3 March 2025\nDue date: 2025-04-02\nBill to: Bar Ltd\n"
        "Total VAT 19%: 197.11\nGRAND TOTAL: €1.234,50",
        Fields("A-77", date(2025, 3, 3), 1234.5, "EUR", "Foo GmbH"),
    ),
    Category.PAYSLIP: (
        "Example Works Inc\nPayslip\nPay period: 2025-03-01 to 2025-03-31\nPay date: 2025-03-28\n"
        "Gross pay 4,000.00\nDeductions 900.00\nNet pay USD 3,100.00\nYear to date 9,300.00",
        Fields(None, date(2025, 3, 28), 3100.0, "USD", "Example Works Inc"),
    ),
    Category.OTHER: ("Dear all,\nlunch is at noon.\nTotal fun!", Fields()),
}


@pytest.mark.parametrize("category", TEXTS)
def test_texts_are_classified_offline(category: Category) -> None:
    text, fields = TEXTS[category]
    found = classifier().classify(text)
    assert found.category is category
    assert found.fields == fields
    assert 0.5 < found.confidence <= 1


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Form W-2 Wage and Tax Statement\nTax year 2024\nOMB No. 1545-0008", Category.TAX_FORM),
        ("This Services Agreement is entered into by and between the parties.", Category.CONTRACT),
    ],
)
def test_forms_and_contracts_are_told(text: str, category: Category) -> None:
    assert classifier().classify(text).category is category


@pytest.mark.parametrize(
    ("line", "total"),
    [
        ("Total: 1,234.56", 1234.56),
        ("Total 1.234,56 EUR", 1234.56),
        ("TOTAL CHF 1'234.50", 1234.5),
        ("Total due   1 234,50", 1234.5),
        ("Total $5", 5.0),
        ("Subtotal 5.00", None),
        ("Sub-total 5.00", None),
        ("Total tax 8.25% was added", None),
    ],
)
def test_totals_are_read_in_either_notation(line: str, total: float | None) -> None:
    text = f"Invoice number: A-1\nBill to: Bar\n{line}\n"
    assert classifier().classify(text).fields.total == total


@pytest.mark.parametrize(
    "text", ["", "\0", "total " * 40_000, "9" * 100_000, "1,1" * 50_000, "invoice " * 30_000]
)
def test_odd_texts_are_classified_quickly(text: str) -> None:
    started = datetime.now(UTC)
    classifier().classify(text)
    assert (datetime.now(UTC) - started).total_seconds() < 5
