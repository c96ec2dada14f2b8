"""An S3 server of their own for these tests, a bucket for each, and a Spark session that knows the way to it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.fs as pafs
import pytest

from jobs.settings import S3, Landing, Settings, Spark
from jobs.spark import start_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".s3-server" / "bin" / "python"
SPARK = Spark(memory="1500m", java_options="-XX:TieredStopAtLevel=1")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def store() -> Iterator[S3]:
    """An empty store, and credentials for it in the environment."""
    if not PYTHON.is_file():
        pytest.fail("The S3 server is not installed: run `make test-s3`.")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.delenv("AWS_SESSION_TOKEN", raising=False)
        server = subprocess.Popen([PYTHON, ROOT / "tests" / "s3" / "server.py"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            yield S3(endpoint=f"http://127.0.0.1:{int(server.stdout.readline())}")
        finally:
            server.kill()
            server.wait()


def make_bucket(store: S3, name: str) -> str:
    """A new empty bucket whose name begins like that."""
    bucket = f"{name}{next(_numbers)}"
    pafs.S3FileSystem(endpoint_override=store.endpoint, region="us-east-1", allow_bucket_creation=True).create_dir(bucket)
    return bucket


def settings_in(bucket: str, store: S3) -> Settings:
    """Landing folder and lake in a bucket."""
    return Settings(landing=Landing(folder=f"s3://{bucket}/landing"), lake=f"s3://{bucket}/deep/lake", s3=store, spark=SPARK)


@pytest.fixture
def settings(store: S3) -> Settings:
    """An empty landing folder and an empty lake, both in a new bucket."""
    return settings_in(make_bucket(store, "nightjar"), store)


@pytest.fixture(scope="session")
def spark(store: S3) -> Iterator[SparkSession]:
    """The one Spark session; local lakes are open to it as well."""
    session = start_session(settings_in(make_bucket(store, "spark"), store))
    yield session
    session.stop()
