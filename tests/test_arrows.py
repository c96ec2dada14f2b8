"""Which package may import which, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"dags", "jobs", "models", "sql", "tests"}
LIGHT = ("jobs.contracts", "jobs.settings", "jobs.steps")
# Each package, and the modules of ours that it may import besides itself.
ALLOWED = {
    "dags": LIGHT,
    "jobs": ("sql",),
    "models": (*LIGHT, "jobs.files", "jobs.lake", "jobs.runs", "jobs.storage"),
    "sql": (),
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"there is no {package}/"
    helpers = {path.stem for path in (ROOT / "dags").glob("*.py")} if package == "dags" else set()
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports(path)
        if name.split(".")[0] in OURS - {package} - helpers and not any(name == ok or name.startswith(ok + ".") for ok in ALLOWED[package])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("jobs.cli", ("pyspark", "torch", "airflow", "mlflow", "pandas")),
        ("jobs.contracts.tables", ("pyarrow", "deltalake", "pyspark", "numpy")),
        ("jobs.steps", ("pyarrow", "deltalake", "pyspark", "numpy")),
        ("models.train", ("pyspark", "airflow", "optuna")),
        ("models.score", ("pyspark", "airflow")),
        ("models.export", ("pyspark", "torch", "h5py", "minari")),
        ("jobs.world.simulate", ("pyspark", "torch")),
    ],
)
def test_a_module_loads_nothing_heavier_than_it_needs(module: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.split() == []


def test_only_the_lake_writes_tables() -> None:
    """Delta is written through jobs/lake.py alone: no other file of ours names its writers."""
    writers = ("write_deltalake", "saveAsTable", '.write.format("delta")', "DeltaTable")
    wrong = [
        f"{path.relative_to(ROOT)} names {word}"
        for package in ("dags", "jobs", "models")
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / "jobs" / "lake.py"
        for word in writers
        if word in path.read_text()
    ]
    assert wrong == []
