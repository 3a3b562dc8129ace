"""From a template and values to one HTML file that is safe: whatever comes from outside is text in it.

Names, values and reasons of failures pass through ``clean`` and then jinja2's escaping or plotly's; a page's own policy
runs only the two scripts whose checksums it names.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError
from raydistill.evaluate.report import scales
from raydistill.storage.redaction import redact_tree

if TYPE_CHECKING:
    from jinja2 import Environment

    from raydistill.evaluate.report.figures import Picture

PACKAGE = "raydistill.evaluate.report"
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%.()*+-;,=>?@^_`{|}~"
"""Those of base 85 (RFC 1924), but for ``<`` and ``&``: a script's text holds no tag and no entity."""


def render(template: str, pictures: Mapping[str, Sequence[Picture]], *, package: str = PACKAGE, **values: Any) -> str:
    """The HTML of a template that extends ``frame.html`` and has a ``plot`` for each of the pictures.

    ``pictures``: by section of the page, without one where there is nothing to draw. ``package``: where the template
    lies. ``values`` are the template's own, cleaned by ``clean``.
    """
    figures = {picture.name: picture.figure for section in pictures.values() for picture in section}
    page = environment(package).get_template(template)
    return page.render(plotly=packed_plotly(), digits=DIGITS, pictures=pictures, figures=figures, **values)


@dataclass(frozen=True)
class Packed:
    """A script as ``frame.html`` unpacks it: ``num_bytes`` of gzip in base 85; and the script's own checksum."""

    text: str
    num_bytes: int
    checksum: str


@cache
def packed_plotly() -> Packed:
    """plotly's library, 1.8 MB instead of 4.8; in base 64 it would be 2.0. Takes 1 s."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    content = gzip.compress(script.encode(), 9, mtime=0)
    padded = content + bytes(-len(content) % 4)
    text = base64.b85encode(padded).decode().translate(str.maketrans("<&", ",."))
    return Packed(text, len(content), checksum(script))


@cache
def environment(package: str) -> Environment:
    """Templates of ``package`` and of all pages; texts are escaped, and a name that is missing is an error."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in dict.fromkeys((package, PACKAGE))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"checksum": checksum, "duration": scales.duration, "setting": scales.setting}
    found.globals |= {"scale": scales.scale, "label": scales.label, "spoken": scales.spoken}
    return found


def write_page(text: str, path: Path) -> None:
    """Write a page; an older one at that place is replaced at once. ConfigError where the place cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise ConfigError(
            f"The report cannot be written to {path}: {error.strerror}. Name another place with --out."
        ) from error


def clean(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON object without credentials, and with what is not to be seen in its texts made visible."""
    found: dict[str, Any] = scales.visible(redact_tree(values))
    return found


def yaml_text(settings: Mapping[str, Any]) -> str:
    """Settings as a person writes them."""
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False, allow_unicode=True, width=100)


def checksum(script: str) -> str:
    """As a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
