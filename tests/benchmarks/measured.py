"""What a command costs, with everything that it starts."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent.parent
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of a command and all its processes, their peak memory in GB, and what they said."""

    wall: float
    cpu: float
    peak: float
    said: str


def measure(command: Sequence[str], environment: dict[str, str]) -> Cost:
    """Run a command at the project's root; exit with the end of what it said when it fails."""
    cpu: dict[int, float] = {}  # of each process, as last seen: nobody waits for a JVM, so the system does not add it up
    peak, began = 0.0, time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(command, stdout=said, stderr=said, env=environment, cwd=ROOT)
        while process.poll() is None:
            resident = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    used = member.cpu_times()
                    resident += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                cpu[member.pid] = used.user + used.system
            peak = max(peak, resident / 1e9)
            time.sleep(_LOOK_SECONDS)
        said.seek(0)
        words = said.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{words[-3000:]}")
    return Cost(time.monotonic() - began, sum(cpu.values()), peak, words)


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, or VmHWM at most. getrusage's peak is that of the process which started it, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
