"""What every test may use: one Spark session for the whole run, an empty lake, rows written as short as the test needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.lake import Lake
from jobs.settings import Landing, Settings, Spark
from jobs.spark import start_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one Spark session."""
    session = start_session(Settings(lake=str(tmp_path_factory.mktemp("spark")), spark=Spark(memory="1500m", java_options="-XX:TieredStopAtLevel=1")))
    yield session
    session.stop()
    logging.getLogger("py4j").setLevel(logging.WARNING)  # it tells of connections closed at the very end, into a stream that is closed by then


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Default settings over an empty landing folder and an empty lake."""
    return Settings(landing=Landing(folder=str(tmp_path / "landing")), lake=str(tmp_path / "lake"))


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """The empty lake of those settings."""
    return Lake(settings.lake_path, tuple(settings.event_types))
