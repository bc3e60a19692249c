"""The figures of an analysis, by hand and in general."""

import random
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.ai import Record, analyst, read_transactions
from providers.ai.analysis import CategoryTotal, figures_of, modified_z_scores
from providers.errors import Refused

YEAR = (date(2025, 1, 1), date(2025, 12, 31))


def test_figures_by_hand() -> None:
    records = [
        Record(date(2024, 12, 31), 9_999.0, "sales"),
        Record(date(2025, 1, 1), 1_000.0, "sales"),
        Record(date(2025, 1, 15), -400.0, "rent"),
        Record(date(2025, 3, 1), 500.0, "sales"),
        Record(date(2025, 3, 2), -0.1, "fees"),
        Record(date(2025, 3, 3), -0.2, "fees"),
        Record(date(2025, 3, 31), -300.0, "rent"),
        Record(date(2025, 4, 1), -9_999.0, "rent"),
    ]
    figures = figures_of(records, date(2025, 1, 1), date(2025, 3, 31))
    assert (figures.income, figures.expenses, figures.net) == (1500.0, 700.3, 799.7)
    assert figures.margin == pytest.approx(0.5331)
    assert figures.transactions == 6
    assert figures.top_income == [CategoryTotal("sales", 1500.0, 2)]
    assert figures.top_expenses == [CategoryTotal("rent", -700.0, 2), CategoryTotal("fees", -0.3, 2)]
    months = [(month.month, month.net, month.net_change) for month in figures.months]
    assert months == [("2025-01", 600.0, None), ("2025-02", 0.0, -600.0), ("2025-03", 199.7, 199.7)]
    assert figures.outliers == []


def test_months_without_transactions_count_across_years() -> None:
    records = [Record(date(2024, 11, 5), 1.0), Record(date(2025, 2, 5), 1.0)]
    figures = figures_of(records, date(2024, 1, 1), date(2025, 12, 31))
    assert [month.month for month in figures.months] == ["2024-11", "2024-12", "2025-01", "2025-02"]


def test_an_outlier_stands_out_in_its_own_category() -> None:
    chance = random.Random(1)
    records = [
        Record(date(2025, 1, 1) + timedelta(days=day), -100 - chance.random() * 10, "supplies")
        for day in range(30)
    ]
    records += [Record(date(2025, 2, 1) + timedelta(days=day), -5_000.0, "rent") for day in range(10)]
    records.append(Record(date(2025, 3, 1), -900.0, "supplies"))
    (outlier,) = figures_of(records, *YEAR).outliers
    assert (outlier.date, outlier.amount, outlier.category) == (date(2025, 3, 1), -900.0, "supplies")
    assert outlier.score < -100


def test_scores_by_hand() -> None:
    # Median 2.45, median absolute deviation 0.15: 0.6745 (8.2 - 2.45) / 0.15 = 25.86.
    scores = modified_z_scores([2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3])
    assert scores[8] == pytest.approx(25.856, abs=0.001)
    assert scores[0] == pytest.approx(-1.574, abs=0.001)


def test_equal_amounts_have_no_outlier_and_one_other_stands_out() -> None:
    assert modified_z_scores([0.1 + 0.2, 0.3, 0.3, 0.3]) == [0.0] * 4
    assert modified_z_scores([5.0] * 20 + [50.0])[-1] > 3.5


@given(
    st.lists(
        st.builds(
            Record,
            st.dates(*YEAR),
            st.integers(-10_000_000, 10_000_000).map(lambda cents: cents / 100),
            st.sampled_from(["a", "b", "c"]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.randoms(use_true_random=False),
)
def test_figures_add_up_in_any_order(records: list[Record], chance: random.Random) -> None:
    figures = figures_of(records, *YEAR)
    cents = sum(round(record.amount * 100) for record in records)
    assert round(figures.net * 100) == cents
    assert round(sum(month.net for month in figures.months) * 100) == cents
    assert round(sum(total.total for total in (*figures.top_income, *figures.top_expenses)) * 100) == cents
    shuffled = list(records)
    chance.shuffle(shuffled)
    again = figures_of(shuffled, *YEAR)
    assert (again.months, again.top_expenses) == (figures.months, figures.top_expenses)


def test_findings_state_what_stands_out() -> None:
    records = [
        Record(date(2025, 1, 10), 1_000.0, "sales"),
        Record(date(2025, 1, 20), -500.0, "rent"),
        Record(date(2025, 2, 10), 500.0, "sales"),
        Record(date(2025, 2, 20), -1_100.0, "rent"),
    ]
    _, findings = analyst().analyze(records, *YEAR)
    assert findings.by == "rules"
    assert findings.sentences == [
        "Expenses exceeded income by 100.00.",
        "rent makes up 100% of all expenses.",
        "Income fell by 50% from 2025-01 to 2025-02.",
        "Expenses rose by 120% from 2025-01 to 2025-02.",
    ]


def test_a_period_without_transactions_is_refused() -> None:
    with pytest.raises(Refused, match="no transactions between 2025-01-01 and 2025-12-31"):
        figures_of([Record(date(2026, 1, 1), 1.0)], *YEAR)


def test_transactions_are_read_from_csv() -> None:
    content = '\ufeffDate, Amount,category,description\r\n2025-01-02,-12.50,,"paper, pens"\r\n2025-01-03,7,sales,\r\n'
    assert read_transactions(content.encode()) == [
        Record(date(2025, 1, 2), -12.5, "uncategorized", "paper, pens"),
        Record(date(2025, 1, 3), 7.0, "sales", ""),
    ]
    assert read_transactions(b"amount,date\n1,2025-01-01") == [Record(date(2025, 1, 1), 1.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must name the columns date and amount"),
        (b"day,amount\n2025-01-01,1", "must name the columns date and amount"),
        (b"date,amount\n2025-01-01,1\n01/02/2025,2\n", "line 3 of"),
        (b"date,amount\n2025-01-01,nan\n", "line 2 of"),
        (b"date,amount\n2025-01-01\n", "line 2 of"),
        (b"date,amount\n2025-01-01,secret-text\n", "line 2 of"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_rows_that_cannot_be_read_are_named(content: bytes, message: str) -> None:
    with pytest.raises(Refused, match=message) as raised:
        read_transactions(content)
    assert "secret" not in str(raised.value)
