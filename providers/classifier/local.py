"""Classify documents by weighted terms.

Each category has terms with a weight; a term counts once however often it occurs. The confidence is the share
of the best category in the weight of all categories, lowered when there is little evidence at all. It knows
English business documents, has learned nothing from data, and says `other` when the evidence is thin.
"""

import re
from functools import cache

from providers.classifier import Category, Classification
from providers.classifier.extract import extract

ENOUGH_EVIDENCE = 8.0
"""The weight from which evidence counts in full: about one telling term and two supporting ones."""
LEAST_EVIDENCE = 4.0
LONGEST_TEXT = 200_000
"""Characters that are looked at: what a document is stands on its first pages."""

TERMS: dict[Category, dict[str, float]] = {
    Category.INVOICE: {
        r"invoice (no|number|#|id|date)": 5,
        r"tax invoice": 4,
        r"invoice": 3,
        r"bill(ed)? to": 3,
        r"(amount|balance|total) due": 3,
        r"due date|payment terms|net \d+ days": 3,
        r"remit(tance)?( to)?": 2,
        r"purchase order|p\.?o\.? (no|number|#)": 2,
        r"sub-?total": 1,
        r"unit price|qty|quantity": 1,
        r"vat|sales tax|tax \d": 1,
    },
    Category.RECEIPT: {
        r"receipt": 4,
        r"cashier|served by|register \d": 4,
        r"change( due)?:?\s*[$€£]?\d": 3,
        r"thank you for (shopping|your purchase|your visit)": 4,
        r"(visa|mastercard|amex|debit|credit card).{0,20}(\*{2,}|x{2,})\s*\d{4}": 3,
        r"cash( tendered)?:?\s*[$€£]?\d": 3,
        r"paid (in full|by|with)": 2,
        r"auth(orization)? code|approval code|terminal id": 3,
        r"sub-?total": 1,
        r"store #?\d": 2,
    },
    Category.BANK_STATEMENT: {
        r"(bank|account) statement|statement of account": 5,
        r"statement (period|date)": 4,
        r"(opening|beginning|previous) balance": 4,
        r"(closing|ending) balance": 4,
        r"deposits|withdrawals": 2,
        r"account (no|number)": 2,
        r"iban|swift|sort code|routing number": 2,
        r"available balance": 2,
        r"debits?|credits?": 1,
    },
    Category.TAX_FORM: {
        r"form (w-?[0-9]+|10(40|65|99|98|95)(-[a-z]+)?|11(20|20-?s)|94[0-4]|8\d{3})": 6,
        r"internal revenue service|department of the treasury": 5,
        r"tax return|schedule [a-k]\b": 3,
        r"employer identification number|taxpayer identification": 3,
        r"omb no": 4,
        r"tax year|adjusted gross income|taxable income": 3,
        r"withholding|filing status": 2,
    },
    Category.CONTRACT: {
        r"this (\w+ ){0,3}agreement": 5,
        r"by and between|entered into": 4,
        r"hereinafter|hereby|whereas|witnesseth": 3,
        r"governing law": 4,
        r"termination|terminate": 2,
        r"party|parties": 2,
        r"confidential(ity)?|indemnif\w+|liabilit\w+": 2,
        r"in witness whereof": 4,
        r"effective date": 2,
    },
    Category.PAYSLIP: {
        r"pay ?slip|pay ?stub|earnings statement": 6,
        r"net pay": 5,
        r"gross (pay|wages|earnings)": 4,
        r"pay (period|date)": 3,
        r"deductions": 2,
        r"employee (id|no|number|name)": 3,
        r"year to date|ytd": 3,
        r"social security|medicare|fica": 2,
        r"hours worked|overtime": 2,
    },
}


class LocalClassifier:
    """Classifies by weighted terms and extracts by patterns."""

    def classify(self, text: str) -> Classification:
        text = text[:LONGEST_TEXT]
        weights = evidence(text)
        best = max(weights, key=lambda category: weights[category])
        if weights[best] < LEAST_EVIDENCE:
            # Thin evidence for anything is evidence for `other`.
            return Classification(Category.OTHER, round(1 - weights[best] / LEAST_EVIDENCE, 4))
        share = weights[best] / sum(weights.values())
        confidence = share * min(1.0, weights[best] / ENOUGH_EVIDENCE)
        return Classification(best, round(confidence, 4), extract(text))


def evidence(text: str) -> dict[Category, float]:
    """Return the weight of the terms found for each category."""
    flat = re.sub(r"\s+", " ", text.lower())
    return {
        category: sum(weight for pattern, weight in terms if pattern.search(flat))
        for category, terms in _patterns().items()
    }


@cache
def _patterns() -> dict[Category, list[tuple[re.Pattern[str], float]]]:
    return {
        category: [(re.compile(rf"\b(?:{term})"), weight) for term, weight in terms.items()]
        for category, terms in TERMS.items()
    }
