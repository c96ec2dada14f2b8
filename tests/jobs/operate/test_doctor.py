"""Doctor, and what every command says when Java or the JARs are not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.contracts.errors import MachineUnfit
from jobs.operate.doctor import diagnosis, memory, package, print_diagnosis
from jobs.operate.jars import fill_jars
from jobs.settings import Settings
from jobs.spark import JARS_VARIABLE, delta_jars, jars_path

ROOT = Path(__file__).parent.parent.parent.parent


def fake_java(folder: Path, version: str) -> dict[str, str]:
    """An environment whose Java says that it is another version."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    java.chmod(0o755)
    return os.environ | {"JAVA_HOME": str(folder)}


def test_this_machine_is_fit(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnosis(settings)
    printed = capsys.readouterr().out
    assert "✗" not in printed
    assert {finding.what for finding in diagnosis(settings)} >= {"Java", "Delta JARs", "pyspark", "memory", "disk", "ports", "landing", "lake", "GPU"}


def test_what_is_unfit_is_named_with_what_to_do(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAVA_HOME", fake_java(tmp_path / "java", "11.0.1")["JAVA_HOME"])
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path))
    with pytest.raises(MachineUnfit, match="Not fit: Java, Delta JARs"):
        print_diagnosis(settings)
    assert "is Java 11" in capsys.readouterr().out.replace("\n", " ")


def test_versions_and_memory() -> None:
    assert package("pyspark", "4.2.0").advice is None
    assert package("pyspark", "4.1.0").advice == "Nightjar is made for 4.1.0: run `make setup`."
    assert package("no-such-package", "1").found == "not installed"
    assert memory(20.0).advice is None
    assert memory(1.5).advice is not None


@pytest.mark.parametrize(
    "command", [["run", "features", "--day", "2026-01-01"], ["night", "--day", "2026-01-01"], ["backfill", "--from", "2026-01-01", "--to", "2026-01-02"]]
)
@pytest.mark.parametrize(("version", "message"), [("11.0.1", "needs Java 17 or 21, and"), (None, "Spark needs Java, and there is none in JAVA_HOME=")])
def test_a_wrong_or_missing_java_is_a_message(tmp_path: Path, command: list[str], version: str | None, message: str) -> None:
    environment = fake_java(tmp_path / "java", version) if version else os.environ | {"JAVA_HOME": str(tmp_path / "nowhere")}
    answer = subprocess.run([sys.executable, "-m", "jobs", *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "openjdk-17-jre-headless" in answer.stderr


def test_jars_that_are_there_are_not_resolved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Java to resolve them with, and none is needed."""
    monkeypatch.setenv(JARS_VARIABLE, str(jars_path()))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    before = delta_jars()
    fill_jars(s3=False)
    assert delta_jars() == before
    assert len(before) == 7
