"""What a public page calls models and data sets, and text that Markdown shows as it is.

A page that is made to be published names no folder of this machine: a local source is called by its last part, a URL
loses credentials and query. Class names and sources are other people's text and are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from raydistill.config.student import STARTS
from raydistill.config.tasks import SECTIONS
from raydistill.errors import ConfigError
from raydistill.evaluate.report.scales import cut, visible
from raydistill.storage.paths import is_url, resolve_path
from raydistill.storage.redaction import redact

MAX_NAME = 80
MARKUP = re.compile(r"([\\`*_\[\]<>|~&$#])")
KEPT_TABLE = re.compile(r"/tables/[0-9a-f]{20}$")
"""End of a ``data.path`` that ``frames`` has made; its key says nothing to a reader."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model or data set as a public page may call it."""

    name: str
    hub: str | None = None
    """Its name on the Hugging Face hub, where it has one."""
    revision: str | None = None

    def link(self, kind: str = "") -> str:
        """In Markdown; ``kind``: the hub's folder, ``datasets/``, of models none."""
        if self.hub is None:
            return escape(self.name)
        at = f" at revision {escape(self.revision)}" if self.revision else ""
        return f"[{escape(self.name)}](https://huggingface.co/{kind}{self.repository}){at}"

    @property
    def repository(self) -> str | None:
        """``hub`` without the configuration of a data set."""
        return None if self.hub is None else self.hub.partition(":")[0]


def teachers_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of the teachers, the one that the student started from first: of several each has a weight."""
    teacher = config["teacher"]
    return [*teacher["members"].values()] if teacher.get("type") == "mixture" else [teacher]


def teachers_text(config: Mapping[str, Any]) -> str:
    """Which models teach, as the config names them."""
    return " + ".join(teacher["model"] for teacher in teachers_of(config))


def epoch_metric(results: Mapping[str, Any]) -> str:
    """By which metric on validation rows the weights of an epoch were taken."""
    section = SECTIONS.get(results["task"]["type"])
    usual = results["task"]["main_metric"] if section is None else section.metrics[0]
    return results["config"]["evaluate"]["metric"] or usual


def model_source(teacher: Mapping[str, Any]) -> Source:
    return source_of(teacher["model"], teacher["revision"])


def start_source(config: Mapping[str, Any]) -> Source | None:
    """The checkpoint that the student started from; None where it was cut from the teacher or drawn at random."""
    start = config["student"]["start"]
    return None if start in STARTS else source_of(start)


def data_source(data: Mapping[str, Any]) -> Source:
    if KEPT_TABLE.search(data["path"]):
        return Source("a table given in Python")
    return (on_hub if data["format"] == "hub" else source_of)(data["path"], data["revision"])


def source_of(name: str, revision: str | None = None) -> Source:
    """A model or data set by name, ``pkg://`` path, URL or path; only a hub name and a ``pkg://`` path stay whole."""
    if name.startswith("pkg://"):
        return Source(plain(name))
    if is_url(name):
        return Source(plain(public_url(name)))
    try:
        is_local = resolve_path(name) is not None
    except ConfigError:  # written as a path, but it is gone by now
        is_local = True
    return Source(plain(last_part(name))) if is_local else on_hub(name, revision)


def on_hub(name: str, revision: str | None = None) -> Source:
    return Source(plain(name), name if HUB_NAME.fullmatch(name) else None, revision)


def public_url(url: str) -> str:
    """A web address without credentials and query; of any other URL, a bucket's for example, the last part."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a half-open [ of an IPv6 address
        return "data"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme in ("http", "https") else last_part(parts.path)


def last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "data"


def plain(text: str) -> str:
    """On one line, without credentials and what is not to be seen, and not endless."""
    return cut(" ".join(visible(redact(str(text))).split()), MAX_NAME)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return MARKUP.sub(r"\\\1", " ".join(visible(str(text)).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right; cells are Markdown already."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
