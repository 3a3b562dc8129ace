"""Data sets that the ``datasets`` library reads: a folder of ``save_to_disk``, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import MOST_CELLS, Cells, canonical, choose_columns
from raydistill.errors import ConfigError, DataError
from raydistill.models.folder import hub_is_away
from raydistill.storage.paths import names_beside
from raydistill.storage.redaction import redact

_WAY_OUT = "Check the name, data.revision, the network and HF_TOKEN; or give the path of a local file or folder."


def hub_commit(name: str, revision: str | None) -> str:
    """The commit that ``owner/name[:configuration]`` stands at now; asks the hub, offline the local cache.

    Raises ConfigError when there is no such data set or it cannot be reached.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = name.partition(":")[0]
    try:
        return str(HfApi().dataset_info(repository, revision=revision, timeout=30).sha)
    except Exception as error:  # the hub client's, httpx's and the offline mode's errors share no base class
        reference = f"datasets--{repository.replace('/', '--')}/refs/{revision or 'main'}"
        cached = Path(HF_HUB_CACHE) / reference
        if os.path.isfile(cached):  # and not Path.is_file, which raises for a name that is too long
            return cached.read_text().strip()
        beside = names_beside(Path(os.path.abspath(repository)))
        if getattr(error, "response", None) is None and not isinstance(error, ValueError):  # no answer, no bad name
            raise ConfigError(
                f"{name} is no local file or folder, {hub_is_away()}, and its cache here lacks it: "
                f"{_first_line(error)}. Check the path, or the network. {beside}"
            ) from error
        raise ConfigError(
            f"{name} is no local file or folder, and no data set on the Hugging Face hub answers to that name: "
            f"{_first_line(error)}. {_WAY_OUT} {beside}"
        ) from error


def load_hub(name: str, commit: str) -> Any:
    """The data set (all splits) at a commit, from the hub or its cache. Raises DataError when it cannot be loaded."""
    from datasets import load_dataset

    repository, _, configuration = name.partition(":")
    try:
        return load_dataset(repository, configuration or None, revision=commit)
    except Exception as error:  # one load calls a dozen builders, each with its own error classes
        raise DataError(
            f"{name} cannot be loaded from the hub: {_first_line(error)}. {_WAY_OUT} "
            f"A data set with several configurations is written owner/name:configuration."
        ) from error


def load_saved(path: Path | str) -> Any:
    """A data set that ``save_to_disk`` wrote. Raises DataError when the folder is damaged."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except Exception as error:  # pyarrow, json and file-system errors, by what is damaged
        raise DataError(
            f"{redact(str(path))} cannot be read as a folder that datasets' save_to_disk wrote: "
            f"{redact(_first_line(error))}. Save it again."
        ) from error


def read_split(
    data: Any, columns: Columns, what: str, need_label: bool, task: TaskSection, cells: Callable[[], Cells]
) -> tuple[pa.Table, tuple[str, ...] | None, dict[str, str]]:
    """A Dataset as a canonical table, the names of a ClassLabel column, and the columns that were chosen."""
    chosen = choose_columns(data.column_names, columns, what, need_label, task, cells=cells)
    names = class_names(data.features.get(chosen.get("label", "")))
    raw = data.select_columns(list(chosen.values())).with_format("arrow")[:]
    return canonical(raw, chosen, what, names, task), names, chosen


def first_cells_of(data: Any) -> dict[str, list[Any]]:
    """The cells of a Dataset's first rows by column; of a ClassLabel they are numbers."""
    found: dict[str, list[Any]] = data.with_format("arrow")[:MOST_CELLS].to_pydict()
    return found


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Names of a ClassLabel, or of one in lists and objects."""
    if hasattr(feature, "names"):
        return tuple(feature.names)
    inside = feature.values() if isinstance(feature, dict) else [getattr(feature, "feature", None)]
    return next((found for one in inside if one is not None and (found := class_names(one)) is not None), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
