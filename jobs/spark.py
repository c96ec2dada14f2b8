"""The Spark session, and the Java and the JARs it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.contracts import errors
from jobs.contracts.errors import EngineMissing
from jobs.settings import Settings
from jobs.storage import S3Path, hadoop_options

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_VERSIONS = (17, 21)
JARS_VARIABLE = "NIGHTJAR_JARS"
DELTA_PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
# Spark writes methods that are too long for the JVM to compile unless it is told to: typing a log takes twice as long then.
_JAVA_OPTIONS = "-Duser.timezone=UTC -XX:+UseSerialGC -XX:-DontCompileHugeMethods"
CLASSES = "classes.jsa"
JARS_PATTERNS = ("io.delta_delta-spark_4.2_2.13-4.4.0.jar", "io.delta_*.jar", "io.unitycatalog_*.jar")
# What a lake on S3 needs besides: Hadoop's S3A in the version of Spark's own Hadoop, and the SDK that it is made for (690 MB).
S3_PACKAGES = ("org.apache.hadoop:hadoop-aws:3.5.0", "software.amazon.awssdk:bundle:2.35.4")
S3_JARS = (
    "org.apache.hadoop_hadoop-aws-3.5.0.jar",
    "software.amazon.s3.analyticsaccelerator_analyticsaccelerator-s3-1.3.1.jar",
    "software.amazon.awssdk_bundle-2.35.4.jar",
)


def jars_path() -> Path:
    """Folder of the Delta JARs: `$NIGHTJAR_JARS`, else `.jars` beside the packages."""
    return Path(os.environ.get(JARS_VARIABLE, Path(__file__).parent.parent / ".jars"))


def java_command() -> str | None:
    """The Java that Spark would start: that of `$JAVA_HOME`, else of the path."""
    home = os.environ.get("JAVA_HOME")
    return str(Path(home, "bin", "java")) if home else shutil.which("java")


def java_version() -> int:
    """Major version of the Java that Spark would start. Raises EngineMissing when there is none or it doesn't fit."""
    advice = f"Install a JDK {' or '.join(map(str, JAVA_VERSIONS))} (Debian: apt-get install openjdk-17-jre-headless) and put it on PATH, or set JAVA_HOME."
    home, java = os.environ.get("JAVA_HOME"), java_command()
    where = f"JAVA_HOME={home}" if home else "PATH"
    if java is None or not Path(java).exists():
        raise EngineMissing(f"Spark needs Java, and there is none in {where}. {advice}")
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True)
    except OSError as error:
        raise EngineMissing(f"{java} can't be run: {error.strerror}. {advice}") from error
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if found is None:
        raise EngineMissing(f"{java} does not tell its version: {(answer.stderr or answer.stdout).strip()[:200]!r}. {advice}")
    version = int(found.group(1))
    if version not in JAVA_VERSIONS:
        raise EngineMissing(f"Spark 4.2 needs Java {' or '.join(map(str, JAVA_VERSIONS))}, and {java} is Java {version}. {advice}")
    return version


def delta_jars() -> list[Path]:
    """The Delta JARs. Raises EngineMissing when they have not been resolved."""
    jars = sorted({jar for pattern in JARS_PATTERNS for jar in jars_path().resolve().glob(pattern)})
    if not any(jar.match(JARS_PATTERNS[0]) for jar in jars):
        raise EngineMissing(f"{DELTA_PACKAGE} is not in {jars_path()}. Run `make setup`, or set {JARS_VARIABLE} to a folder that has it.")
    return jars


def s3_jars() -> list[Path]:
    """The JARs of a lake on S3. Raises EngineMissing when some have not been resolved."""
    jars = [jars_path().resolve() / name for name in S3_JARS]
    if missing := [jar.name for jar in jars if not jar.is_file()]:
        raise EngineMissing(f"A lake on S3 needs {', '.join(missing)}, not in {jars_path()}. Run `nightjar jars --s3` (700 MB), or set {JARS_VARIABLE}.")
    return jars


def require_engine(settings: Settings) -> None:
    """Raise EngineMissing when Java or the JARs don't fit."""
    java_version()
    _jars(settings)


def _jars(settings: Settings) -> list[Path]:
    return delta_jars() + (s3_jars() if isinstance(settings.lake_path, S3Path) else [])


def _class_archive() -> list[str]:
    """JVM options for the archive of loaded classes, where `nightjar jars` has made one; a JVM or a class path that it doesn't fit ignores it."""
    archive = jars_path().resolve() / CLASSES
    return [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"] if archive.is_file() else []


def start_session(settings: Settings) -> SparkSession:
    """Start Spark on this machine with Delta, in UTC. Raises EngineMissing when Java or the JARs don't fit."""
    java_version()
    jars = ":".join(str(jar) for jar in _jars(settings))
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    import pyspark
    from pyspark.sql import SparkSession

    os.environ["SPARK_HOME"] = str(Path(pyspark.__file__).resolve().parent)
    java_options = " ".join((_JAVA_OPTIONS, *_class_archive(), settings.spark.java_options)).strip()
    builder = (
        SparkSession.builder.master(f"local[{settings.spark.cores}]")
        .appName("nightjar")
        .config("spark.driver.extraClassPath", jars)
        .config("spark.driver.memory", settings.spark.memory)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.extraJavaOptions", java_options)
        .config("spark.sql.shuffle.partitions", str(2 * settings.spark.cores))
        .config("spark.databricks.delta.snapshotPartitions", "1")  # to read a version took 12 s with the default of 50, 3 s with 1
        # Delta's parser drops the parameters of `spark.sql(query, args)`, unless they are bound after parsing (delta issue 7640).
        .config("spark.sql.legacy.parameterSubstitution.constantsOnly", "true")
        .config("spark.log.level", "ERROR")
    )
    if isinstance(settings.lake_path, S3Path):
        for name, value in hadoop_options(settings.s3).items():
            builder = builder.config(f"spark.hadoop.{name}", value)
    else:
        builder = builder.config("spark.sql.warehouse.dir", str(settings.lake_path / "_warehouse"))
    return builder.getOrCreate()


@contextmanager
def from_tasks() -> Iterator[None]:
    """What a task raised, a NightjarError or an OSError, without the traces that Spark puts around it."""
    from pyspark.errors import PythonException

    try:
        yield
    except PythonException as error:
        if found := re.search(rf"^{errors.__name__}\.(\w+): (.+)$", str(error), re.MULTILINE):
            raise getattr(errors, found[1])(found[2]) from error
        if found := re.search(r"^(?:OSError|PermissionError|FileNotFoundError): (?:\[Errno (\d+)\] )?(.+)$", str(error), re.MULTILINE):
            raise (OSError(int(found[1]), found[2]) if found[1] else OSError(found[2])) from error
        raise
