"""What a check found: fine, worth a look or wrong, with the way out; and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report; `hint` says how to mend it and is empty where all is well."""

    name: str
    state: State
    detail: str
    hint: str = ""


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    from rich.text import Text

    for check in checks:
        console.print(
            Text.assemble((f"{check.state:4} ", STYLES[check.state]), f"{check.name}: {check.detail}"), soft_wrap=True
        )
        if check.hint:
            console.print(Text(f"     → {check.hint}"), soft_wrap=True)
