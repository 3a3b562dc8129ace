"""MLflow databases that are copies of one that is empty: MLflow takes 2 s of a core to create the tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

TEMPLATE = "RAYDISTILL_EMPTY_STORE"
"""Names the file of the database that others are copies of: the first that is made in this environment."""


def copied(made_whole: Callable[[str], AbstractContextManager[str]]) -> Callable[[str], Any]:
    """In place of ``raydistill.tracking.endpoint.made_whole``."""
    from raydistill.tracking.endpoint import sqlite_path

    @contextmanager
    def made(uri: str) -> Iterator[str]:
        template = Path(os.environ[TEMPLATE])
        with made_whole(uri) as address:
            database = sqlite_path(address)
            if database is None or database.exists():
                yield address
            elif template.exists():
                shutil.copyfile(template, database)
                yield address
            else:
                yield address
                own = template.with_name(f"{template.name}.{os.getpid()}")
                shutil.copyfile(database, own)
                os.replace(own, template)  # other processes look

    return made
