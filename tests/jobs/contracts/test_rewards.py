from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from jobs.contracts.rewards import MAX_LENGTH, reward_sql
from jobs.settings import EventType

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# expression, value, what it is worth by hand
WORTH = [
    ("0", 3.0, 0.0),
    ("5 + 0.1 * value", 30.0, 8.0),
    ("2 - 3 - 4", 0.0, -5.0),
    ("2 * value + 3 * value", 1.5, 7.5),
    ("(2 + value) * 3", 1.0, 9.0),
    ("value / 4 / 2", 16.0, 2.0),
    ("-value + 1", 3.0, -2.0),
    ("2 - -value", 3.0, 5.0),
    ("min(1, value / 30)", 15.0, 0.5),
    ("min(1, value / 30)", 45.0, 1.0),
    ("max(0, value - 3, min(value, .5))", 2.0, 0.5),
    ("1e-1 * value", 2.0, 0.2),
    ("2.", 0.0, 2.0),
    ("1e22 - 1e22", 0.0, 0.0),
]


def test_an_expression_is_worth_what_it_says(spark: SparkSession) -> None:
    row = spark.range(1).selectExpr(*(f"{reward_sql(text).replace('value', f'{value}D')} as r{n}" for n, (text, value, _) in enumerate(WORTH))).first()
    assert row is not None
    assert list(row) == pytest.approx([worth for _, _, worth in WORTH], abs=1e-12)
    assert dict(spark.range(1).selectExpr("1.0D as value").selectExpr(*(f"{reward_sql(text)} as r{n}" for n, (text, _, _) in enumerate(WORTH))).dtypes) == {
        f"r{n}": "double" for n in range(len(WORTH))
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a number, value, min(, max(, - or ( at position 1 of '', got the end"),
        ("1 +", "at position 4 of '1 +', got the end"),
        ("1 2", "expected +, -, *, / or the end at position 3 of '1 2', got 2"),
        ("price * 2", "expected a number, value, min(, max(, - or ( at position 1 of 'price * 2', got price"),
        ("2 ** value", "at position 4 of '2 ** value', got *"),
        ("(1 + 2", "expected ) at position 7 of '(1 + 2', got the end"),
        ("1)", "expected +, -, *, / or the end at position 2 of '1)', got )"),
        ("min(1)", "expected , at position 6 of 'min(1)', got )"),
        ("min 1, 2", "expected ( at position 5 of 'min 1, 2', got 1"),
        ("(1, 2)", "expected ) at position 3 of '(1, 2)', got ,"),
        ("1 / value", "expected a number other than 0 to divide by at position 5 of '1 / value', got value"),
        ("1 / 0.0", "expected a number other than 0 to divide by at position 5 of '1 / 0.0', got 0.0"),
        ("1e999", "expected a number below 1e308 at position 1 of '1e999', got 1e999"),
        ("1;  drop", "';' at position 2 of '1;  drop' has no meaning here"),
        ("2  'x'", '"\'" at position 4 of '),
        ("__import__(1)", "at position 1 of '__import__(1)', got __import__"),
        ("(" * (MAX_LENGTH + 1), "a reward has at most 200 characters, this one has 201"),
    ],
)
def test_an_expression_that_does_not_fit_says_where(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        reward_sql(text)


def test_the_deepest_expression_that_is_allowed() -> None:
    depth = (MAX_LENGTH - 1) // 2
    assert reward_sql("(" * depth + "7" + ")" * depth) == "7.0e0"
    assert reward_sql("-" * (MAX_LENGTH - 1) + "7").count("-") == MAX_LENGTH - 1


def test_the_settings_refuse_it() -> None:
    assert EventType(reward="5 + 0.1 * value").reward == "5 + 0.1 * value"
    with pytest.raises(ValidationError, match="expected a number"):
        EventType(reward="1 +")
