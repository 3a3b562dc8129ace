"""How pages and tables write numbers and names: units, digits, short names, text that cannot harm a page."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raydistill.config.metrics import metric

ABSENT = "–"


@dataclass(frozen=True)
class Scale:
    """How one measure is written; ``factor`` turns its value into the label's unit."""

    name: str
    unit: str = ""
    factor: float = 1.0
    digits: int = 3
    tick_format: str = ""

    @property
    def label(self) -> str:
        """Of an axis or a column."""
        return f"{self.name},\N{NO-BREAK SPACE}{self.unit}" if self.unit else self.name

    def value(self, value: float | None) -> float | None:
        """In the label's unit, for a plot."""
        return None if value is None else self.factor * value

    def amount(self, value: float | None) -> str:
        """With its unit, for a sentence."""
        return f"{self.text(value)} {self.unit}".rstrip()

    def text(self, value: float | None) -> str:
        """In the label's unit, for a table."""
        if value is None:
            return ABSENT
        if self.tick_format == "~s":
            return short_count(value)
        return f"{round(self.factor * value, self.digits) + 0.0:,.{self.digits}f}"  # + 0.0: never "-0.0"


SCALES = {
    "agreement": Scale("agreement with the teacher", "%", 100, 1),
    "retention": Scale("retention", "%", 100, 1),
    "num_parameters": Scale("parameters", tick_format="~s"),
    "latency_ms": Scale("latency", "ms", digits=2),
    "p50": Scale("latency p50", "ms", digits=2),
    "p95": Scale("latency p95", "ms", digits=2),
    "throughput": Scale("rows a second", digits=0),
    "bytes": Scale("size", "MB", 1e-6, 1),
}
"""Of what is no metric of a task; those are in ``config.metrics``."""


def scale(measure: str) -> Scale:
    """Of a measure, ``validation/<metric>`` or plain; one that is not known is written as it is."""
    name = measure.rpartition("/")[2]
    if name in SCALES:
        return SCALES[name]
    about = metric(name)
    return Scale(about.words, "%", 100, 1) if about.is_share else Scale(about.words)


def label(measure: str) -> str:
    """With the split that it was measured on."""
    split, _, _ = measure.rpartition("/")
    return f"{split} {scale(measure).label}".strip()


def spoken(measure: str) -> str:
    """With the split and without the unit, for a sentence."""
    split, _, _ = measure.rpartition("/")
    return f"{split} {scale(measure).name}".strip()


def short_count(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any) -> str:
    """A setting's value as a person reads it: four digits of a float, lists and sections without quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value[:1] in ("{", "["):  # a list or section is JSON text to the searcher
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        rest = [f"{name}: {setting(item)}" for name, item in sorted(value.items()) if name != "type"]
        return f"{value['type']} ({', '.join(rest)})" if rest else value["type"]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False).replace('"', "")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted names -> their last two parts, or as many as it takes to tell them apart."""
    names = list(names)
    parts = {name: name.split(".") for name in names}
    short: dict[str, str] = {}
    for name in names:
        taken = 2
        while taken < len(parts[name]) and any(
            parts[other][-taken:] == parts[name][-taken:] for other in names if other != name
        ):
            taken += 1
        short[name] = ".".join(parts[name][-taken:])
    return short


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def cut_middle(text: str, length: int) -> str:
    """A class name that fits an axis: names often share their beginning, so the end stays."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1].rstrip()}…{text[-half:].lstrip()}"


def visible(value: Any) -> Any:
    """The same JSON value, in whose texts what is not to be seen is: control characters, half surrogates, and marks
    that change the direction of writing."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(map(_visible, value))
    if isinstance(value, Mapping):
        return {visible(str(name)): visible(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible(item) for item in value]
    return value


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    is_hidden = unicodedata.category(character) in ("Cc", "Cs") or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return "\N{REPLACEMENT CHARACTER}" if is_hidden else character
