"""Texts without credentials, and without what a terminal would obey."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONTROLS = re.compile(r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tabs, ends of lines and colours: texts and class names of a data set may hold any."""


def harmless(text: str) -> str:
    """The text as a terminal may show it: no title to set, no screen to clear, nothing to type for the user."""
    return CONTROLS.sub(lambda found: found[1] or "\N{REPLACEMENT CHARACTER}", text)


HIDDEN = "***"
SECRETS = (
    # user:password@ or token@ in a URI; greedy, so that a password may hold an @ of its own
    (re.compile(r"(?<=://)[^/\s\"'<>]*@"), HIDDEN + "@"),
    # a query parameter or a field whose name says that it is secret
    (
        re.compile(
            r"(?i)((?:^|[?&=\s{,\"'_.-])(?:access_?token|auth_?token|token|api_?key|secret(?:_?(?:access_?)?key)?|password"
            r"|passwd|access_?key(?:_?id)?|signature|sig|x-amz-[a-z-]+|credential)[\"']?(?:=|:\s*)[\"']?)[^\s&\"',}]+"
        ),
        r"\1" + HIDDEN,
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{10,}"), "hf_" + HIDDEN),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"), "gh_" + HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}"), HIDDEN),
    (
        re.compile(r"(?<![\w-])(?:github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|sk-(?:[a-z]+-)?\w{20,})"),
        HIDDEN,
    ),
    (re.compile(r"(?i)\b(bearer )[\w.~+/=-]+"), r"\1" + HIDDEN),
)


def redact(text: str) -> str:
    """The text without credentials in URIs, secret query parameters and fields, Hugging Face, GitHub and AWS keys."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(values: Mapping[str, str]) -> dict[str, str]:
    """The values redacted, each in the light of its name: all of ``tracking.tags.api_key`` is taken out."""
    return {name: HIDDEN if value and _is_secret(name) else redact(value) for name, value in values.items()}


def _is_secret(name: str) -> bool:
    return redact(f"{name}: x") != f"{name}: x"


def redact_tree(node: Any, name: str = "") -> Any:
    """Plain data whose texts and names are redacted, a text in the light of its name. To be done before it becomes JSON
    or YAML: ``redact`` takes the 3 of ``"token": 3`` for a secret, and what is left is no JSON."""
    if isinstance(node, Mapping):
        return {redact(str(key)): redact_tree(value, str(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(redact_tree(value, name) for value in node)
    return redact_values({name: node})[name] if isinstance(node, str) else node
