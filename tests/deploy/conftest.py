"""What tests of promotions and exports share."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from kit.registered import make_life

from raydistill.storage.storage import Storage


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_life(tmp_path_factory.mktemp("life"))


@pytest.fixture
def place(life: Path, tmp_path: Path) -> Storage:
    """A registry of its own for a test; the runs' files are the originals."""
    shutil.copytree(life / "storage", tmp_path / "storage")
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured within milliseconds, for tests in which they do not count."""
    from raydistill.deploy import paired

    monkeypatch.setattr(paired, "time_calls", partial(paired.time_calls, repeats=3, seconds=0.02))
