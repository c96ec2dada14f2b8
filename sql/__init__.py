"""SQL that ships with Nightjar."""

from __future__ import annotations

from importlib.resources import files


def checks() -> dict[str, str]:
    """The checks of an audit, by name and in its order: each returns the rows that break it, and its first line says what holds."""
    folder = files("sql").joinpath("checks")
    found = {file.name.removesuffix(".sql"): file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".sql")}
    return dict(sorted(found.items()))


def macros(name: str) -> str:
    """The statements of `sql/macros/NAME.sql`, which make macros of DuckDB."""
    return files("sql").joinpath("macros", f"{name}.sql").read_text(encoding="utf-8")
