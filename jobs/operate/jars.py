"""Fills the folder that `jobs.spark` looks in, once: the Delta JARs, those of S3 where wanted, and an archive of the classes that steps load.

Every Spark step is a JVM of its own, and a quarter of its CPU time on a small day went into reading and verifying the same 25,000
classes. A JVM that finds them in an archive maps them into its memory (class data sharing, JEP 350).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from jobs.contracts.errors import EngineMissing
from jobs.settings import elsewhere
from jobs.spark import CLASSES, DELTA_PACKAGE, JARS_PATTERNS, S3_JARS, S3_PACKAGES, delta_jars, jars_path, java_version, s3_jars
from jobs.world.simulate import simulate

_RESOLVE = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
builder.config("spark.jars.packages", sys.argv[1]).config("spark.jars.ivy", sys.argv[2]).getOrCreate().stop()
"""
_DAYS = ("2026-01-01", "2026-01-02")


def fill_jars(s3: bool) -> None:
    """Resolve the JARs, with `s3` those of a lake on S3 too, and archive the classes; what is there already is left as it is.

    Raises EngineMissing when Java doesn't fit, or when the JARs can't be resolved, with the end of what Ivy said.
    """
    if not any(jars_path().glob(JARS_PATTERNS[0])):
        java_version()
        _fetch(jars_path(), [DELTA_PACKAGE], JARS_PATTERNS)
    delta_jars()
    if s3:
        if not all((jars_path() / name).is_file() for name in S3_JARS):
            java_version()
            _fetch(jars_path(), S3_PACKAGES, S3_JARS)
        s3_jars()
    if not _is_current(jars_path() / CLASSES):
        java_version()
        _archive_classes(jars_path())


def _is_current(archive: Path) -> bool:
    """Whether it was made since Spark was installed: a JVM takes no archive that is older than a JAR of its class path."""
    spark = find_spec("pyspark")
    installed = Path(spark.origin).parent / "jars" if spark and spark.origin else None
    return archive.is_file() and (installed is None or archive.stat().st_mtime >= installed.stat().st_mtime)


def _fetch(target: Path, packages: Sequence[str], patterns: Sequence[str]) -> None:
    print(f"Resolving {', '.join(packages)} into {target} …", file=sys.stderr)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ivy-", dir=target) as folder:
        # Delta's own last: where it is, the others are.
        for jar in sorted(_resolve(Path(folder), packages, patterns), key=lambda path: path.match(JARS_PATTERNS[0])):
            jar.rename(target / jar.name)


def _resolve(ivy: Path, packages: Sequence[str], patterns: Sequence[str]) -> list[Path]:
    command = [sys.executable, "-c", _RESOLVE, ",".join(packages), str(ivy)]
    answer = subprocess.run(command, env=os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}, capture_output=True, text=True)
    # Of what Ivy brings, Spark has, or does without, everything else.
    jars = sorted({jar for pattern in patterns for jar in (ivy / "jars").glob(pattern)})
    if answer.returncode != 0 or not jars:
        raise EngineMissing(
            f"{', '.join(packages)} could not be resolved. They are on Maven Central; behind a mirror, name it in an Ivy settings file "
            f"(spark.jars.ivySettings), or put the JARs there by hand: {jars_path()}. Ivy said at last:\n{_end(answer)}"
        )
    return jars


def _end(answer: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-15:])


def _archive_classes(target: Path) -> None:
    """Rehearse the Spark steps on two days of a tiny world in a JVM that writes down which classes it loaded."""
    (target / CLASSES).unlink(missing_ok=True)  # a JVM that reads one can't write one
    print(f"Rehearsing once, so that Spark starts faster from now on: {target / CLASSES} …", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=target.resolve()) as folder:
        landing, archive = Path(folder, "landing"), Path(folder, CLASSES)
        simulate(landing, users=20, items=20, first=date.fromisoformat(_DAYS[0]), days=len(_DAYS), seed=0, null=False, confounded=False, faults=True)
        environment = elsewhere(landing / "nightjar.toml") | {
            "NIGHTJAR_SPARK__JAVA_OPTIONS": f"-XX:TieredStopAtLevel=1 -XX:ArchiveClassesAtExit={archive}",
        }
        command = [sys.executable, "-m", "jobs", "backfill", "--from", _DAYS[0], "--to", _DAYS[-1]]
        # The pipes are the JVM's as well, so this waits for its end, which is when it writes the archive.
        answer = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True)
        if answer.returncode != 0 or not archive.is_file():
            print(f"The rehearsal failed, so Spark goes on starting as slowly as it did. It said at last:\n{_end(answer)}", file=sys.stderr)
            return
        archive.rename(target / CLASSES)
