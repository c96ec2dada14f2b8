"""The README's commands, run as a reader would type them: every ```bash and ```python block, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import CONFIG_VARIABLE, load_settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    for name in (".venv", ".jars"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = "\n".join(["set -eu", *blocks("bash")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTJAR_")}
    commands = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert commands.returncode == 0, commands.stdout[-3000:] + commands.stderr[-3000:]
    assert (tmp_path / "demo" / "lake" / "reports" / "2026-01-08.html").is_file()
    assert "popularity" in commands.stdout

    reader = subprocess.run([sys.executable, "-c", "\n".join(blocks("python"))], capture_output=True, text=True, cwd=tmp_path)
    assert reader.returncode == 0, reader.stderr[-3000:]
    assert reader.stdout.count("*") == 3


def test_the_settings_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "nightjar.toml"))
    read = []
    for block in blocks("toml"):
        (tmp_path / "nightjar.toml").write_text(block)
        read.append(load_settings())
    other_names, in_a_bucket = read
    assert other_names.landing.event_types == {"view": "impression"}
    assert (in_a_bucket.lake, in_a_bucket.landing.folder) == ("s3://bucket/lake", "s3://bucket/landing")


TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)))


@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_that_the_pages_name(target: str) -> None:
    answer = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
