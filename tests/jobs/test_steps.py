from __future__ import annotations

import importlib.util

import pytest

from jobs.contracts.errors import UnknownStep
from jobs.contracts.tables import TABLES
from jobs.steps import FEATURES_DAILY, POLICY_DAILY, STEPS, find_step


def test_the_plan_in_order() -> None:
    assert FEATURES_DAILY + POLICY_DAILY == ("bronze", "silver", "features", "transitions", "train", "evaluate", "gate", "score", "audit", "publish")


def test_each_step_reads_what_an_earlier_one_wrote() -> None:
    written = {"gold.verdicts"}  # of the nights before: they name the champion
    for step in STEPS:
        assert set(step.reads) <= written, step.name
        written |= set(step.writes)


def test_each_table_has_a_contract_and_one_writer() -> None:
    written = [table for step in STEPS for table in step.writes]
    assert sorted(written) == sorted(TABLES)


def test_each_step_is_a_module() -> None:
    assert [step.name for step in STEPS if importlib.util.find_spec(step.module) is None] == []


def test_each_table_knows_its_grain_and_its_partition() -> None:
    for table in TABLES.values():
        names = [column.name for column in table.columns]
        assert len(set(names)) == len(names), table.name
        assert set(table.grain) <= set(names), table.name
        assert {*table.partition_by} <= {*names}, table.name


@pytest.mark.parametrize(("name", "near"), [("brnze", "'bronze'"), ("transition", "'transitions'"), ("publsh", "'publish'")])
def test_an_unknown_step_is_told_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(UnknownStep, match=f"Did you mean {near}"):
        find_step(name)


def test_a_name_near_to_nothing_is_told_the_plan() -> None:
    with pytest.raises(UnknownStep, match="Steps, in order: bronze, silver") as caught:
        find_step("xyzzy")
    assert "Did you mean" not in str(caught.value)
