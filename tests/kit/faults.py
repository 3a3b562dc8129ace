"""How long to wait on a machine that may be busy, and where runs are tracked."""

from __future__ import annotations

import os
from pathlib import Path


def tracking_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'storage' / 'mlflow.db'}"


def patience(seconds: float) -> float:
    """So many seconds on two idle cores, longer where others keep them busy."""
    return seconds * max(1.0, os.getloadavg()[0] / 2)
