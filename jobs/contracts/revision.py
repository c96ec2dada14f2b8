"""Which code this is."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def revision() -> str:
    """Code revision: `$NIGHTJAR_REVISION` (set in images), else git's, else `unknown`."""
    if "NIGHTJAR_REVISION" in os.environ:
        return os.environ["NIGHTJAR_REVISION"]
    here = Path(__file__).parent
    answer = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"
