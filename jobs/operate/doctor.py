"""Says whether this machine is fit, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from jobs.contracts.errors import EngineMissing, MachineUnfit, NightjarError
from jobs.settings import Settings, config_path
from jobs.spark import delta_jars, jars_path, java_version, s3_jars
from jobs.storage import Location, S3Path, prove_reachable, prove_writable

PINNED = {"apache-airflow": "3.3.2", "pyspark": "4.2.0", "delta-spark": "4.4.0", "deltalake": "1.6.6", "torch": "2.13.0"}
MEMORY_GB = 6
DISK_GB = 5
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and what to do when it is unfit (null = it is fit)."""

    what: str
    found: str
    advice: str | None = None


def print_diagnosis(settings: Settings) -> None:
    """Print a table of what was found. Raises MachineUnfit when something is not as it has to be."""
    findings = diagnosis(settings)
    page = Table(title="Is this machine fit?", title_justify="left")
    for heading in ("", "what", "found", "what to do"):
        page.add_column(heading)
    for finding in findings:
        page.add_row("✗" if finding.advice else "✓", finding.what, finding.found, finding.advice or "")
    Console(width=130).print(page)
    unfit = [finding.what for finding in findings if finding.advice]
    if unfit:
        raise MachineUnfit(f"Not fit: {', '.join(unfit)}. The table says what to do.")


def diagnosis(settings: Settings) -> list[Finding]:
    """Look at everything that a night needs."""
    return [
        engine("Java", lambda: str(java_version())),
        engine("Delta JARs", lambda: f"{len(delta_jars())} in {jars_path()}"),
        *([engine("S3 JARs", lambda: f"{len(s3_jars())} in {jars_path()}")] if isinstance(settings.lake_path, S3Path) else []),
        *(package(name, pin) for name, pin in PINNED.items()),
        memory(psutil.virtual_memory().available / GB),
        disk(settings.lake_path if isinstance(settings.lake_path, Path) else Path(tempfile.gettempdir())),
        port(),
        Finding("settings", str(config_path()) if config_path().is_file() else "defaults: there is no nightjar.toml here"),
        landing(settings.landing_path),
        lake(settings.lake_path),
        Finding("GPU", gpu()),
    ]


def engine(what: str, look: Callable[[], str]) -> Finding:
    """Something that Spark needs, and that says itself what is wrong with it."""
    try:
        return Finding(what, look())
    except EngineMissing as error:
        return Finding(what, "unfit", str(error))


def package(name: str, pin: str) -> Finding:
    """A package whose version must be exactly the pinned one."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "not installed", f"Run `make setup`; it installs {pin}.")
    return Finding(name, found, None if found == pin else f"Nightjar is made for {pin}: run `make setup`.")


def memory(available: float) -> Finding:
    """Free memory, in GB."""
    advice = f"A night takes up to {MEMORY_GB} GB: end something, or lower spark.memory." if available < MEMORY_GB else None
    return Finding("memory", f"{available:.1f} GB free", advice)


def disk(lake: Path) -> Finding:
    """Free space where the lake lies, or will lie."""
    free = shutil.disk_usage(nearest(lake)).free / GB
    return Finding("disk", f"{free:.0f} GB free at {nearest(lake)}", f"Make room: {DISK_GB} GB is little for a lake." if free < DISK_GB else None)


def port() -> Finding:
    """Whether a server can listen on loopback, as Spark and the embedded Airflow do."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Finding("ports", "127.0.0.1 can be bound")
    except OSError as error:
        return Finding("ports", str(error), "Spark and Airflow listen on 127.0.0.1: bring the loopback interface up.")


def landing(folder: Location) -> Finding:
    """The landing folder; that there is none yet is no fault of the machine."""
    if isinstance(folder, S3Path):
        return store("landing", folder, prove_reachable)
    if not folder.is_dir():
        return Finding("landing", f"{folder} is not there yet")
    return Finding("landing", str(folder), None if os.access(folder, os.R_OK | os.X_OK) else "It can't be read: mend its rights.")


def lake(folder: Location) -> Finding:
    """The lake, or the folder in which it will be made."""
    if isinstance(folder, S3Path):
        return store("lake", folder, prove_writable)
    writable = os.access(nearest(folder), os.W_OK) and not os.statvfs(nearest(folder)).f_flag & os.ST_RDONLY
    return Finding("lake", str(folder), None if writable else f"{nearest(folder)} can't be written to: mend its rights, or set `lake` elsewhere.")


def store(what: str, folder: S3Path, prove: Callable[[S3Path], None]) -> Finding:
    """A folder of an object store, and whether it can be used."""
    try:
        prove(folder)
    except NightjarError as error:
        return Finding(what, str(folder), str(error))
    return Finding(what, str(folder))


def gpu() -> str:
    """Name of the GPUs, as the driver tells it."""
    if shutil.which("nvidia-smi") is None:
        return "none: training runs on the CPU"
    answer = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return ", ".join(answer.stdout.split("\n")).strip(", ") if answer.returncode == 0 else "nvidia-smi fails: training runs on the CPU"


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
