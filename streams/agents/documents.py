"""Jobs of the `document-processing` queue: read a document's text, say what kind of document it is."""

from datetime import date, timedelta

from pydantic import Field

from providers.artifacts import artifacts
from providers.classifier import Category, classifier
from providers.ocr import MAX_BYTES, ocr
from streams.jobs import Job, Payload, Result, handles
from streams.queues import DOCUMENTS


class OcrDocument(Payload):
    """Read the text of a PDF, PNG, JPEG or TIFF artifact; `classify` asks for its classification afterwards."""

    document_uri: str = Field(min_length=1)
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$")
    classify: bool = False


class OcrResult(Result):
    """What was read. `method` is "text" (a text layer), "ocr" (pictures), "text+ocr" or the cloud provider's name."""

    method: str
    pages: int
    characters: int
    confidence: float
    """Mean over the pages that have text, 0 to 1; 0 when none has."""
    text_uri: str


class ClassifyDocument(Payload):
    """Say what kind of document a text artifact is, and extract the fields its kind has."""

    text_uri: str = Field(min_length=1)


class ClassificationResult(Result):
    """The kind of a document and what could be extracted; a field that was not found is None."""

    category: Category
    confidence: float
    """0 to 1; the share of the evidence that speaks for this category."""
    invoice_number: str | None = None
    issued: date | None = None
    total: float | None = None
    currency: str | None = None
    """ISO 4217."""
    vendor: str | None = None


@handles(DOCUMENTS, "document.ocr", timeout=timedelta(minutes=10), runs_in="process", provider="ocr")
def ocr_document(job: Job[OcrDocument]) -> OcrResult:
    """Write the document's text to an artifact, pages separated by form feeds."""
    document = artifacts().read(job.organization_id, job.payload.document_uri, max_bytes=MAX_BYTES)
    reading = ocr().read(document, language=job.payload.language, progress=job.progress)
    text_uri = artifacts().write(job.organization_id, f"text/{job.id}.txt", reading.text.encode())
    if job.payload.classify:
        job.follow_up(ClassifyDocument(text_uri=text_uri))
    return OcrResult(
        method=reading.method,
        pages=len(reading.pages),
        characters=len(reading.text),
        confidence=reading.confidence,
        text_uri=text_uri,
    )


@handles(DOCUMENTS, "document.classify", timeout=timedelta(minutes=2), provider="ai")
def classify_document(job: Job[ClassifyDocument]) -> ClassificationResult:
    """Classify a text that `document.ocr` wrote."""
    text = (
        artifacts()
        .read(job.organization_id, job.payload.text_uri, max_bytes=MAX_BYTES)
        .decode(errors="replace")
    )
    found = classifier().classify(text)
    return ClassificationResult(
        category=found.category,
        confidence=found.confidence,
        invoice_number=found.fields.invoice_number,
        issued=found.fields.issued,
        total=found.fields.total,
        currency=found.fields.currency,
        vendor=found.fields.vendor,
    )
