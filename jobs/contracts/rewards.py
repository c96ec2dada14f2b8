"""Rewards: the small language in which the settings say what one event is worth, and where a reward may end up.

    sum     = product { ("+" | "-") product }
    product = factor { "*" factor | "/" number }
    factor  = number | "value" | "-" factor | "(" sum ")" | ("min" | "max") "(" sum "," sum { "," sum } ")"

Only numbers divide, so that every event has a reward, whatever its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

UNATTRIBUTED_REASONS = {
    "no_step": "the user had no step with the item within reach before the event",
    "too_late": "the user's last step with the item lies further back than `maturity_days` of the event type",
}
MAX_LENGTH = 200
MICRO = 1_000_000  # a reward is kept in millionths until it is summed, so that the order of a sum changes no bit
_LARGEST = "1e9"  # the reward of one event; a larger one counts as 0, as does what is no number

_TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/(),]))")
_FUNCTIONS = {"min": "least", "max": "greatest"}


def micros_sql(rewards: Mapping[str, str]) -> str:
    """SQL, for Spark and DuckDB alike, for the reward of an event in whole millionths, given the expression of each event type."""
    value = "case when abs(value) < 1e22 then value else 0e0 end"
    cases = " ".join(f"when '{name}' then {_rounded(reward_sql(reward).replace('value', value))}" for name, reward in rewards.items())
    return f"case event_type {cases} else cast(0 as bigint) end"


def _rounded(reward: str) -> str:
    return f"case when abs({reward}) < {_LARGEST} then cast(floor({reward} * {MICRO}e0 + 0.5e0) as bigint) else cast(0 as bigint) end"


def reward_sql(expression: str) -> str:
    """SQL, for Spark and DuckDB alike, for a reward expression: a double over the column `value`, which must not be null.

    Raises ValueError, which names the position (from 1), what was expected there and what came.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"a reward has at most {MAX_LENGTH} characters, this one has {len(expression)}")
    return _Parser(expression).parse()


@dataclass(frozen=True)
class _Token:
    kind: str  # number, name, sign or end
    text: str
    position: int  # from 1


def _tokens(expression: str) -> list[_Token]:
    tokens, at = [], 0
    end = len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            at += len(expression[at:]) - len(expression[at:].lstrip())
            raise ValueError(f"{expression[at]!r} at position {at + 1} of {expression!r} has no meaning here")
        tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        at = match.end()
    return [*tokens, _Token("end", "the end", end + 1)]


class _Parser:
    """Recursive descent, one method a rule of the grammar; each returns the SQL of what it read."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = _tokens(expression)

    def parse(self) -> str:
        sql = self._sum()
        if self._tokens[0].kind != "end":
            raise self._unexpected("+, -, *, / or the end")
        return sql

    def _sum(self) -> str:
        sql = self._product()
        while self._tokens[0].text in ("+", "-"):
            sign = self._tokens.pop(0).text
            sql = f"({sql} {sign} {self._product()})"
        return sql

    def _product(self) -> str:
        sql = self._factor()
        while self._tokens[0].text in ("*", "/"):
            sign = self._tokens.pop(0).text
            sql = f"({sql} {sign} {self._factor() if sign == '*' else self._divisor()})"
        return sql

    def _factor(self) -> str:
        token = self._tokens[0]
        if token.kind == "number":
            return self._number()
        if token.text == "value":
            self._tokens.pop(0)
            return "value"
        if token.text == "-":
            self._tokens.pop(0)
            return f"(- {self._factor()})"
        if token.text == "(":
            return self._parenthesis()[0]
        if token.text in _FUNCTIONS:
            self._tokens.pop(0)
            arguments = self._parenthesis(least=2, most=MAX_LENGTH)
            return f"{_FUNCTIONS[token.text]}({', '.join(arguments)})"
        raise self._unexpected("a number, value, min(, max(, - or (")

    def _parenthesis(self, least: int = 1, most: int = 1) -> list[str]:
        self._take("(")
        parts = [self._sum()]
        while len(parts) < least or (len(parts) < most and self._tokens[0].text == ","):
            self._take(",")
            parts.append(self._sum())
        self._take(")")
        return parts

    def _divisor(self) -> str:
        if self._tokens[0].kind != "number" or float(self._tokens[0].text) == 0:
            raise self._unexpected("a number other than 0 to divide by")
        return self._number()

    def _number(self) -> str:
        if not math.isfinite(float(self._tokens[0].text)):
            raise self._unexpected("a number below 1e308")
        number = repr(float(self._tokens.pop(0).text))
        return number if "e" in number else f"{number}e0"  # with an exponent it is a double everywhere

    def _take(self, sign: str) -> None:
        if self._tokens[0].text != sign:
            raise self._unexpected(sign)
        self._tokens.pop(0)

    def _unexpected(self, expected: str) -> ValueError:
        token = self._tokens[0]
        return ValueError(f"expected {expected} at position {token.position} of {self._expression!r}, got {token.text}")
