"""The offline OCR provider: text layers, scans, and files that can never be read."""

import io
import subprocess
import sys

import pypdfium2
import pytest
from PIL import Image

import providers.ocr.local as local
from demo.invoices import scanned_images, scanned_invoice, text_invoice
from providers.errors import Refused
from providers.ocr import Reading, ocr
from providers.ocr.layout import Box, in_rows


def read(document: bytes) -> Reading:
    return ocr().read(document, language="en", progress=lambda fraction, note: None)


def joined(*documents: bytes) -> bytes:
    """Return one PDF with the pages of all."""
    with pypdfium2.PdfDocument.new() as target:
        for document in documents:
            with pypdfium2.PdfDocument(document) as source:
                target.import_pages(source)
        file = io.BytesIO()
        target.save(file)
        return file.getvalue()


def picture(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encrypted_pdf(password: str) -> bytes:
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    file = io.BytesIO()
    canvas = Canvas(file, encrypt=StandardEncryption(password, "owner"))
    canvas.drawString(72, 720, "A text that needs a password to be read")
    canvas.save()
    return file.getvalue()


def test_a_text_layer_is_taken_as_it_is() -> None:
    reading = read(text_invoice("INV-2025-0042", pages=2))
    assert (reading.method, reading.confidence, len(reading.pages)) == ("text", 1.0, 2)
    assert "Invoice number: INV-2025-0042\n" in reading.text
    assert "Total due: USD 1,488.44" in reading.text


def test_a_scan_is_recognized_line_by_line() -> None:
    scan = scanned_invoice("INV-2025-0077", seed=3)
    with pypdfium2.PdfDocument(scan) as document:
        assert document[0].get_textpage().count_chars() == 0
    reading = read(scan)
    assert reading.method == "ocr"
    assert 0.9 < reading.confidence <= 1.0
    lines = reading.text.splitlines()
    assert "Invoice number: INV-2025-0077" in lines
    assert "Total due: USD 1,488.44" in lines
    assert "Bookkeeping services, March 1 850.00" in lines


def test_each_page_is_read_in_its_own_way() -> None:
    notes: list[tuple[float, str]] = []
    document = joined(text_invoice("INV-1-TEXT"), scanned_invoice("INV-2-SCAN"))
    reading = ocr().read(document, language="en", progress=lambda *note: notes.append(note))
    assert [page.method for page in reading.pages] == ["text", "ocr"]
    assert reading.method == "text+ocr"
    assert "INV-2-SCAN" in reading.pages[1].text
    assert notes == [(0.5, "page 1 of 2"), (1.0, "page 2 of 2")]


def test_a_stamp_on_a_scan_is_not_its_text() -> None:
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    file = io.BytesIO()
    canvas = Canvas(file, pagesize=(595, 842))
    canvas.drawImage(ImageReader(scanned_images("INV-2025-0042")[0]), 0, 0, 595, 842)
    canvas.drawString(20, 20, "Received 2025-04-02 by the front office, page 1 of 1")
    canvas.save()
    assert "INV-2025-0042" in read(file.getvalue()).text


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 85})])
def test_pictures_are_read(kind: str, options: dict[str, object]) -> None:
    reading = read(picture(scanned_images("INV-2025-0042")[0], kind, **options))
    assert "INV-2025-0042" in reading.text


def test_every_page_of_a_tiff_is_read() -> None:
    first, second = scanned_images("INV-2025-0042", pages=2)
    reading = read(picture(first, "TIFF", save_all=True, append_images=[second]))
    assert len(reading.pages) == 2
    assert all("INV-2025-0042" in page.text for page in reading.pages)


def test_a_blank_picture_has_no_text() -> None:
    reading = read(picture(Image.new("L", (600, 800), 255), "PNG"))
    assert (reading.text, reading.confidence, len(reading.pages)) == ("", 0.0, 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 a spreadsheet", "neither a PDF nor"),
        (b"%PDF-1.7\nnothing that follows the rules", "damaged"),
        (text_invoice("A-1")[:300], "damaged"),
        (encrypted_pdf("secret"), "encrypted"),
        (picture(Image.new("L", (600, 800), 255), "PNG")[:80], "damaged"),
        (picture(Image.new("1", (10_000, 7_000)), "PNG"), "more than 64000000 pixels"),
        (picture(Image.new("1", (20_000, 10_000)), "PNG"), "more than 64000000 pixels"),
    ],
    ids=["empty", "spreadsheet", "garbage", "cut", "encrypted", "cut-png", "large-png", "bomb-png"],
)
def test_what_can_never_be_read_is_refused(document: bytes, message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(document)


def test_a_pdf_that_opens_without_a_password_is_read() -> None:
    assert "needs a password" in read(encrypted_pdf("")).text


def test_too_many_pages_are_refused_before_any_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_recognize", lambda picture: pytest.fail("a page was recognized"))
    monkeypatch.setattr(local, "MAX_SCANNED_PAGES", 2)
    with pytest.raises(Refused, match="3 pages without text; at most 2"):
        read(scanned_invoice("INV-1", pages=3))
    monkeypatch.setattr(local, "MAX_PAGES", 4)
    with pytest.raises(Refused, match="5 pages; expected 1 to 4"):
        read(text_invoice("INV-1", pages=5))
    monkeypatch.setattr(local, "MAX_BYTES", 100)
    with pytest.raises(Refused, match="at most 100"):
        read(text_invoice("INV-1"))


def test_a_huge_page_is_rendered_within_bounds() -> None:
    from reportlab.pdfgen.canvas import Canvas

    file = io.BytesIO()
    canvas = Canvas(file, pagesize=(14_400, 10_000))
    canvas.setFont("Helvetica", 900)
    canvas.drawString(1_000, 5_000, "POSTER")
    canvas.save()
    assert "POSTER" in read(file.getvalue()).text


def test_rows_follow_the_turn_of_the_page() -> None:
    def box(text: str, x: float, y: float, width: float) -> Box:
        slope = 0.03
        top, right = y + slope * x, y + slope * (x + width)
        return Box(text, [(x, top), (x + width, right), (x + width, right + 20), (x, top + 20)])

    boxes = [
        box("second row, long enough to tell", 0, 30, 400),
        box("9.00", 900, 30, 60),
        box("first row, just as long as that", 0, 0, 400),
        box("1", 880, 0, 10),
    ]
    assert in_rows(boxes) == ["first row, just as long as that 1", "second row, long enough to tell 9.00"]
    assert in_rows([]) == []


def test_handlers_load_no_heavy_library() -> None:
    heavy = ["numpy", "onnxruntime", "cv2", "rapidocr", "pypdfium2", "PIL", "reportlab", "openpyxl"]
    code = (
        "import sys; from streams.agents import load; load(); from streams.jobs import HANDLERS; "
        f"print(sorted(set({heavy}) & set(sys.modules)), 'document.ocr' in HANDLERS, len(HANDLERS) >= 9)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "[] True True\n", run.stderr
