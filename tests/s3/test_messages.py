"""What a user is told, within seconds, of a store that can't be used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.operate.doctor import diagnosis
from jobs.settings import CONFIG_VARIABLE, S3, Settings
from tests.s3.conftest import ROOT, make_bucket

BRONZE = ("run", "bronze", "--day", "2026-01-01")
COMMANDS = [BRONZE, ("run", "train", "--day", "2026-01-01"), ("status",), ("report", "--day", "2026-01-01")]


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def told(folder: Path, endpoint: str, bucket: str, command: tuple[str, ...], **environment: str | None) -> str:
    """The message of a command that fails, in less than 30 seconds."""
    config = folder / "nightjar.toml"
    config.write_text(f'lake = "s3://{bucket}/lake"\n[landing]\nfolder = "s3://{bucket}/landing"\n[s3]\nendpoint = "{endpoint}"\n')
    variables = {name: value for name, value in (os.environ | environment | {CONFIG_VARIABLE: str(config)}).items() if value is not None}
    began = time.monotonic()
    answer = subprocess.run([sys.executable, "-m", "jobs", *command], capture_output=True, text=True, env=variables, cwd=ROOT)
    assert time.monotonic() - began < 30
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    return " ".join(answer.stderr.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_bucket_that_is_not_there(store: S3, tmp_path: Path, command: tuple[str, ...]) -> None:
    message = told(tmp_path, store.endpoint, "nowhere", command)
    assert f"The bucket nowhere can't be reached at {store.endpoint}: NO_SUCH_BUCKET" in message
    assert "[s3] in nightjar.toml" in message


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_endpoint_where_nobody_listens(store: S3, tmp_path: Path, command: tuple[str, ...]) -> None:
    message = told(tmp_path, "http://127.0.0.1:9", "nowhere", command)
    assert "The bucket nowhere can't be reached at http://127.0.0.1:9: " in message


def test_an_endpoint_that_says_nothing(store: S3, silent: str, tmp_path: Path) -> None:
    assert f"The bucket nowhere can't be reached at {silent}: " in told(tmp_path, silent, "nowhere", BRONZE)


def test_no_credentials(store: S3, tmp_path: Path) -> None:
    """On a machine that is none of AWS's, whose tools look for its address as well."""
    bucket = make_bucket(store, "locked")
    without = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": str(tmp_path)}
    message = told(tmp_path, store.endpoint, bucket, BRONZE, **without)
    assert f"The bucket {bucket} can't be reached at {store.endpoint}: ACCESS_DENIED" in message
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


def test_a_bucket_that_can_only_be_read(store: S3, tmp_path: Path) -> None:
    bucket = make_bucket(store, "sealed")
    message = told(tmp_path, store.endpoint, bucket, BRONZE)
    assert f"The lake s3://{bucket}/lake can't be written to. s3://{bucket}/lake can't be reached at {store.endpoint}: " in message
    assert "Error performing PUT" in message
    assert "403 Forbidden" in message


def test_doctor_looks_at_the_store(settings: Settings) -> None:
    findings = {finding.what: finding for finding in diagnosis(settings)}
    assert findings["lake"].found == settings.lake
    assert findings["landing"].found == settings.landing.folder
    assert findings["S3 JARs"].found.startswith("3 in ")
    assert [findings[what].advice for what in ("lake", "landing", "S3 JARs")] == [None] * 3
    lost = settings.model_copy(update={"lake": "s3://nowhere/lake"})
    advice = next(finding.advice for finding in diagnosis(lost) if finding.what == "lake")
    assert advice is not None
    assert advice.startswith(f"The bucket nowhere can't be reached at {settings.s3.endpoint}: NO_SUCH_BUCKET")
