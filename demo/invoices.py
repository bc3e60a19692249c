"""Invoices made at run time: with a text layer, and as a scan that only OCR can read."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True, slots=True)
class Line:
    """One position of an invoice; `unit_price` is in the invoice's currency."""

    description: str
    quantity: int
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.quantity * self.unit_price


LINES = (
    Line("Bookkeeping services, March", 1, Decimal("850.00")),
    Line("Sales tax return, quarterly", 1, Decimal("240.00")),
    Line("Advisory hours", 3, Decimal("95.00")),
)


def text_invoice(
    number: str,
    *,
    vendor: str = "Northwind Accounting LLC",
    customer: str = "Contoso Bakery",
    issued: date = date(2025, 3, 31),
    lines: Sequence[Line] = LINES,
    tax_percent: Decimal = Decimal("8.25"),
    currency: str = "USD",
    pages: int = 1,
) -> bytes:
    """Return an invoice as a PDF with a text layer; further pages repeat the first."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    subtotal = sum((line.amount for line in lines), Decimal())
    tax = (subtotal * tax_percent / 100).quantize(Decimal("0.01"))
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=True)
    canvas.setTitle(f"Invoice {number}")
    for _ in range(pages):
        canvas.setFont("Helvetica-Bold", 18)
        canvas.drawString(60, 780, vendor)
        canvas.setFont("Helvetica", 11)
        canvas.drawString(60, 762, "12 Harbor Street, Portland, OR 97201")
        canvas.setFont("Helvetica-Bold", 22)
        canvas.drawString(60, 715, "INVOICE")
        canvas.setFont("Helvetica", 12)
        head = (f"Invoice number: {number}", f"Invoice date: {issued.isoformat()}", f"Bill to: {customer}")
        for row, text in enumerate(head):
            canvas.drawString(60, 685 - 18 * row, text)
        canvas.setFont("Helvetica-Bold", 12)
        canvas.drawString(60, 610, "Description")
        canvas.drawRightString(380, 610, "Qty")
        canvas.drawRightString(530, 610, "Amount")
        canvas.setFont("Helvetica", 12)
        for row, line in enumerate(lines):
            canvas.drawString(60, 588 - 20 * row, line.description)
            canvas.drawRightString(380, 588 - 20 * row, str(line.quantity))
            canvas.drawRightString(530, 588 - 20 * row, f"{line.amount:,.2f}")
        foot = 570 - 20 * len(lines)
        for row, (label, amount) in enumerate((("Subtotal", subtotal), (f"Tax {tax_percent}%", tax))):
            canvas.drawString(330, foot - 20 * row, f"{label}:")
            canvas.drawRightString(530, foot - 20 * row, f"{amount:,.2f}")
        canvas.setFont("Helvetica-Bold", 13)
        canvas.drawString(330, foot - 46, "Total due:")
        canvas.drawRightString(530, foot - 46, f"{currency} {subtotal + tax:,.2f}")
        canvas.setFont("Helvetica", 10)
        canvas.drawString(60, 90, "Payment terms: net 30 days. Thank you for your business.")
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def scanned_invoice(number: str, *, seed: int = 0, dpi: int = 150, pages: int = 1) -> bytes:
    """Return the same invoice as if printed and scanned: slightly turned, with noise, and no text layer."""
    scans = scanned_images(number, seed=seed, dpi=dpi, pages=pages)
    file = io.BytesIO()
    scans[0].save(file, "PDF", resolution=dpi, save_all=True, append_images=scans[1:], quality=80)
    return file.getvalue()


def scanned_images(number: str, *, seed: int = 0, dpi: int = 150, pages: int = 1) -> "list[Picture]":
    """Return one greyscale picture per page of a scanned invoice."""
    import pypdfium2
    from PIL import Image, ImageChops

    chance = random.Random(seed)
    scans = []
    with pypdfium2.PdfDocument(text_invoice(number, pages=pages)) as document:
        for page in document:
            picture = page.render(scale=dpi / 72).to_pil().convert("L")
            turn = chance.uniform(0.3, 0.9) * chance.choice((-1, 1))
            picture = picture.rotate(turn, Image.Resampling.BICUBIC, fillcolor=255)
            # Grain as a scanner leaves it: darker specks on paper, lighter ones in the print.
            grain = Image.frombytes("L", picture.size, chance.randbytes(picture.width * picture.height))
            scans.append(ImageChops.subtract(picture, grain.point([value // 8 for value in range(256)])))
    return scans
