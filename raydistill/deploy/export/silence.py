"""Converters report to their own developers; what matters in it is checked afterwards."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from raydistill.models.load import quiet


@contextmanager
def silent() -> Iterator[None]:
    """No log lines and no Python warnings inside, whoever wants to write them.

    The null handler is for onnxruntime's quantiser, which calls ``logging.info``: without any handler Python would
    then give the root logger one on stderr, for the rest of the process.
    """
    disabled, root, handler = logging.root.manager.disable, logging.getLogger(), logging.NullHandler()
    logging.disable(logging.CRITICAL)
    root.addHandler(handler)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        logging.disable(disabled)
