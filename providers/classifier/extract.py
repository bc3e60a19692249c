"""Extract the fields of a business document from its text by patterns.

Read line by line, the way people lay such documents out: a label, then its value. What is ambiguous is left
out rather than guessed, except 03/04/2025, which is read month first when the currency is US dollars and day
first otherwise.
"""

import re
from datetime import date

from providers.classifier import Fields

AMOUNT = r"\d{1,3}(?:[ ,.'’]\d{3})+(?:[.,]\d{2})?|\d+[.,]\d{2}|\d+"
CODES = (
    "USD", "EUR", "GBP", "CHF", "CAD", "AUD", "NZD", "JPY", "SEK", "NOK",
    "DKK", "PLN", "CZK", "INR", "BRL", "MXN", "ZAR", "SGD", "HKD", "CNY",
)  # fmt: skip
CURRENCY = rf"(?:{'|'.join(CODES)}|US\$|C\$|A\$|[$€£¥₹])"
OF_SYMBOL = {
    "$": "USD",
    "US$": "USD",
    "C$": "CAD",
    "A$": "AUD",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
}

NUMBER = re.compile(
    r"\b(?:invoice|inv|receipt|bill)\.?\s*(?:no|number|num|nr|id|#)?\.?\s*[:#]?\s*"
    r"((?=[A-Z0-9/_-]*\d)[A-Z0-9][A-Z0-9/_-]{2,29})\b",
    re.IGNORECASE,
)
TOTALS = [
    # The most telling label first: "Total" alone may head a column or sum up one tax.
    re.compile(
        rf"\b{label}\b[^\d\n]{{0,25}}?({CURRENCY})?\s*((?>{AMOUNT}))(?!\s*%)\s*({CURRENCY})?", re.IGNORECASE
    )
    for label in (
        r"(?:grand total|total due|amount due|balance due|total amount|total payable)",
        r"(?:closing balance|ending balance|net pay)",
        r"(?<!sub)(?<!sub[ -])total",
    )
]
DATE = re.compile(
    r"\b(?:(\d{4})-(\d{2})-(\d{2})|(\d{1,2})([/.])(\d{1,2})\5(\d{4})"
    r"|(\d{1,2})(?:st|nd|rd|th)?\s+([A-Z][a-z]{2,8})\.?,?\s+(\d{4})"
    r"|([A-Z][a-z]{2,8})\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4}))\b"
)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DATE_LABEL = re.compile(
    r"\b(?:invoice date|date of issue|issue date|issued|pay date|statement date|date)\b", re.I
)
NOT_ISSUED = re.compile(r"\b(?:due|delivery|ship|service|birth)\b", re.I)
VENDOR_LABEL = re.compile(
    r"^\s*(?:from|vendor|seller|supplier|sold by|merchant)\s*:\s*(\S.{1,79})$", re.I | re.M
)
HEADING = re.compile(
    r"^(?:tax\s+)?(?:invoice|receipt|statement|bill|page|date|number|no|account statement|bank statement)\b",
    re.I,
)


def extract(text: str) -> Fields:
    """Return what the text says about itself."""
    total, currency = _total(text)
    return Fields(
        invoice_number=_number(text),
        issued=_issued(text, month_first=currency in (None, "USD")),
        total=total,
        currency=currency,
        vendor=_vendor(text),
    )


def _number(text: str) -> str | None:
    found = NUMBER.search(text)
    return found[1] if found else None


def _total(text: str) -> tuple[float | None, str | None]:
    """Return the document's sum and currency; of equal labels the last, since sums stand at the end."""
    for pattern in TOTALS:
        if found := list(pattern.finditer(text)):
            before, amount, after = found[-1].groups()
            return _amount(amount), _currency(before or after) or _currency_of(text)
    return None, _currency_of(text)


def _amount(text: str) -> float:
    """Return the number, whether commas or points divide its thousands."""
    digits = re.sub(r"[ '’]", "", text)
    decimal = re.search(r"[.,](\d{2})$", digits)
    whole = digits[: decimal.start()] if decimal else digits
    return float(re.sub(r"[.,]", "", whole) + (f".{decimal[1]}" if decimal else ""))


def _currency(symbol: str | None) -> str | None:
    return OF_SYMBOL.get(symbol.upper(), symbol.upper()) if symbol else None


def _currency_of(text: str) -> str | None:
    """Return the only currency that the text names, or None."""
    named = {_currency(code) for code in re.findall(rf"\b(?:{'|'.join(CODES)})\b|US\$|C\$|A\$|[$€£¥₹]", text)}
    return named.pop() if len(named) == 1 else None


def _issued(text: str, *, month_first: bool) -> date | None:
    """Return the date beside a label that tells its issue, else the first date of the text."""
    first = None
    for line in text.splitlines():
        for found in DATE.finditer(line):
            day = _date(found, month_first=month_first)
            label = line[: found.start()]
            if day is None or NOT_ISSUED.search(label):
                continue
            if DATE_LABEL.search(label):
                return day
            first = first or day
    return first


def _date(found: re.Match[str], *, month_first: bool) -> date | None:
    year, month, day, one, _, two, numeric_year, day_a, name_a, year_a, name_b, day_b, year_b = found.groups()
    try:
        if year:
            return date(int(year), int(month), int(day))
        if one:
            first, second = int(one), int(two)
            swapped = (month_first and found[5] == "/" and first <= 12) or second > 12
            return date(int(numeric_year), *((first, second) if swapped else (second, first)))
        name, number, in_year = (name_a, day_a, year_a) if name_a else (name_b, day_b, year_b)
        return date(int(in_year), MONTHS.index(name[:3].lower()) + 1, int(number))
    except ValueError:
        return None


def _vendor(text: str) -> str | None:
    """Return who is named as the seller, else the first line that is no heading: the letterhead."""
    if found := VENDOR_LABEL.search(text):
        return found[1].strip()
    for line in text.splitlines()[:6]:
        name = line.strip()
        if 3 <= len(name) <= 80 and sum(map(str.isalpha, name)) * 2 > len(name) and not HEADING.match(name):
            return name
    return None
