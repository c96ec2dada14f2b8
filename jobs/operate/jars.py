"""Resolves the Delta JARs once, through Spark's own Ivy, into the folder that `jobs.spark` looks in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.contracts.errors import EngineMissing
from jobs.spark import DELTA_PACKAGE, JARS_PATTERNS, delta_jars, jars_path, java_version

_RESOLVE = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
builder.config("spark.jars.packages", sys.argv[1]).config("spark.jars.ivy", sys.argv[2]).getOrCreate().stop()
"""


def resolve_jars() -> None:
    """Fill the folder of the Delta JARs; when they are there already, nothing is asked of anybody.

    Raises EngineMissing when Java doesn't fit, or when the JARs can't be resolved, with the end of what Ivy said.
    """
    target = jars_path()
    if any(target.glob(JARS_PATTERNS[0])):
        delta_jars()
        return
    java_version()
    print(f"Resolving {DELTA_PACKAGE} into {target} …", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".jars-", dir=target.parent) as folder:
        found = Path(folder, "found")
        found.mkdir()
        for jar in _resolve(Path(folder, "ivy")):
            shutil.move(jar, found)
        shutil.rmtree(target, ignore_errors=True)
        found.rename(target)
    delta_jars()


def _resolve(ivy: Path) -> list[Path]:
    command = [sys.executable, "-c", _RESOLVE, DELTA_PACKAGE, str(ivy)]
    answer = subprocess.run(command, env=os.environ | {"SPARK_LOCAL_IP": "127.0.0.1"}, capture_output=True, text=True)
    # Of what Ivy brings, Spark has everything but Delta's own.
    jars = sorted({jar for pattern in JARS_PATTERNS for jar in (ivy / "jars").glob(pattern)})
    if answer.returncode != 0 or not jars:
        said = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-15:])
        raise EngineMissing(
            f"{DELTA_PACKAGE} could not be resolved. It is on Maven Central; behind a mirror, name it in an Ivy settings file "
            f"(spark.jars.ivySettings), or put the JARs there by hand: {jars_path()}. Ivy said at last:\n{said}"
        )
    return jars
