"""The container files can't be built here; what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent.parent


def test_every_image_has_its_pins() -> None:
    pins = {path.stem for path in (ROOT / "requirements").glob("*.txt")}
    assert pins >= {"airflow", "spark", "train", "local"}
    for name in ("airflow", "spark", "train", "local", "s3-server"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert lines.count("--hash=sha256:") >= lines.count("==") > 20


def test_what_the_dockerfile_copies_is_there() -> None:
    copied = re.findall(r"^COPY (\S+) ", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert [path for path in copied if not path.startswith("requirements/") and not (ROOT / path).is_dir()] == []
    assert len(copied) == 5


def test_compose_is_sound() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) >= {"database", "api-server", "scheduler", "dag-processor"}
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        if "build" in service:
            assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
