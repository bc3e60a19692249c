"""Amounts in minor units: whole numbers of the smallest unit of a currency."""

from decimal import Decimal

# ISO 4217: currencies whose smallest unit is not a hundredth.
_WITHOUT_MINOR_UNIT = frozenset(
    {
        "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG",
        "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF",
    }
)  # fmt: skip
_THOUSANDTHS = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})


def minor_digits(currency: str) -> int:
    """Return how many decimals a currency has."""
    if currency in _WITHOUT_MINOR_UNIT:
        return 0
    return 3 if currency in _THOUSANDTHS else 2


def major(amount_minor: int, currency: str) -> Decimal:
    """Return an amount in the currency's main unit, exactly."""
    return Decimal(amount_minor).scaleb(-minor_digits(currency))


def readable(amount_minor: int, currency: str) -> str:
    """Return an amount for a person to read: `-1,234.50`."""
    return f"{major(amount_minor, currency):,.{minor_digits(currency)}f}"
