"""Read documents with this machine's processor: PDFium for PDFs, RapidOCR (PP-OCRv6) for pictures of text.

The models are inside RapidOCR's wheel, so nothing is fetched. They know Latin scripts, Chinese and Japanese
without being told which; `language` changes nothing here. A process needs up to 550 MiB while it reads a picture.
PDFium is not thread-safe: one document at a time in a process.
"""

import io
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from providers.errors import Refused
from providers.ocr import MAX_BYTES, Page, Progress, Reading
from providers.ocr.layout import Box, in_rows

if TYPE_CHECKING:
    from PIL.Image import Image
    from pypdfium2 import PdfDocument, PdfPage

MAX_PAGES = 1_000
MAX_SCANNED_PAGES = 100
"""About a second each; keeps a document within its job's timeout when all cores are busy."""
MAX_PIXELS = 64_000_000
"""Per picture: an A3 page at 600 dpi has 70 million, decoded it takes 3 bytes for each."""

RENDER_DPI = 150
LONGEST_SIDE_PX = 2_000
DETECTION_SIDE_PX = 1_280
"""Text is located in a copy of this size and read from the full one: a quarter faster, less memory. At 960 the
boxes of turned pages get too rough and letters are lost."""

PASSWORD_ERROR, SECURITY_ERROR = 4, 5


class LocalOcr:
    """Reads a page's text layer where it has a usable one, and its picture where not."""

    def read(self, document: bytes, *, language: str, progress: Progress) -> Reading:
        if not document:
            raise Refused("the document is empty")
        if len(document) > MAX_BYTES:
            raise Refused(f"the document has {len(document)} bytes; at most {MAX_BYTES} are read")
        # Readers accept leading bytes before the header, so do the PDFs that people upload.
        pages = _pdf(document, progress) if b"%PDF-" in document[:1024] else _pictures(document, progress)
        return Reading(tuple(pages))


def _pdf(content: bytes, progress: Progress) -> list[Page]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (PASSWORD_ERROR, SECURITY_ERROR):
            raise Refused("the PDF is encrypted; expected one that opens without a password") from error
        raise Refused("the PDF is damaged and cannot be opened") from error
    with document:
        if not 1 <= len(document) <= MAX_PAGES:
            raise Refused(f"the PDF has {len(document)} pages; expected 1 to {MAX_PAGES}")
        try:
            return list(_pdf_pages(document, progress))
        except pypdfium2.PdfiumError as error:
            raise Refused("the PDF has a damaged page") from error


def _pdf_pages(document: "PdfDocument", progress: Progress) -> Iterator[Page]:
    layers = [_text_layer(document[index]) for index in range(len(document))]
    scanned = layers.count(None)
    if scanned > MAX_SCANNED_PAGES:
        raise Refused(f"the PDF has {scanned} pages without text; at most {MAX_SCANNED_PAGES} are recognized")
    for index, layer in enumerate(layers):
        if layer is not None:
            yield Page(layer, "text", 1.0)
        else:
            yield _recognize(_render(document[index]))
        progress((index + 1) / len(layers), f"page {index + 1} of {len(layers)}")


def _text_layer(page: "PdfPage") -> str | None:
    """Return the page's own text, or None when its picture says more."""
    textpage = page.get_textpage()
    text = textpage.get_text_bounded().replace("\r\n", "\n").replace("\x00", "")
    textpage.close()
    letters = sum(map(str.isalnum, text))
    # Fonts without a Unicode table come out as replacement and private-use characters.
    unreadable = sum(char == "\ufffd" or "\ue000" <= char <= "\uf8ff" for char in text)
    # A scan may carry a stamped page number or file name as its only real text.
    expected = 200 if _is_picture(page) else 16
    return text if letters >= expected and unreadable * 10 < letters else None


def _is_picture(page: "PdfPage") -> bool:
    """Return whether one image covers half of the page or more."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    width, height = page.get_size()
    for image in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3):
        left, bottom, right, top = image.get_bounds()
        if (right - left) * (top - bottom) * 2 >= width * height:
            return True
    return False


def _render(page: "PdfPage") -> "Image":
    scale = min(RENDER_DPI / 72, LONGEST_SIDE_PX / max(page.get_size()))
    bitmap = page.render(scale=scale)
    picture: Image = bitmap.to_pil().convert("RGB")
    bitmap.close()
    return picture


def _pictures(content: bytes, progress: Progress) -> Iterator[Page]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames > MAX_SCANNED_PAGES:
                raise Refused(f"the image has {frames} pages; at most {MAX_SCANNED_PAGES} are recognized")
            for index in range(frames):
                picture.seek(index)
                if picture.width * picture.height > MAX_PIXELS:
                    raise Refused(f"the image has more than {MAX_PIXELS} pixels a page")
                yield _recognize(ImageOps.exif_transpose(picture).convert("RGB"))
                progress((index + 1) / frames, f"page {index + 1} of {frames}")
    except UnidentifiedImageError as error:
        raise Refused("the document is neither a PDF nor a PNG, JPEG or TIFF image") from error
    except Image.DecompressionBombError as error:
        raise Refused(f"the image has more than {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise Refused("the image is damaged and cannot be decoded") from error


def _recognize(picture: "Image") -> Page:
    import numpy

    found = _engine()(numpy.asarray(picture)[:, :, ::-1])
    if found.boxes is None or not found.txts:
        return Page("", "ocr", 0.0)
    boxes = [
        Box(text, [(float(x), float(y)) for x, y in corners])
        for text, corners in zip(found.txts, found.boxes, strict=True)
    ]
    confidence = sum(found.scores) / len(found.scores)
    return Page("\n".join(in_rows(boxes)), "ocr", round(float(confidence), 4))


@cache
def _engine() -> Any:
    """Return this process's engine, on one thread: the worker runs several processes on few cores."""
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.max_side_len": LONGEST_SIDE_PX,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_type": "max",
            "Det.limit_side_len": DETECTION_SIDE_PX,
            # Lines in one batch are padded to the longest: one at a time is faster on one thread, and smaller.
            "Rec.rec_batch_num": 1,
        }
    )
