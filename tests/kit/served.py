"""The serving application's answers from what a run has registered: in this process, a request alone in its batch."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import Sequence
from typing import Any

import mlflow
from fastapi import Request

from kit import ROOT


def served(uri: str, name: str, rows: Sequence[Any], alias: str = "challenger") -> list[dict[str, Any]]:
    """What a POST with these rows gets from the version with the alias. HTTPException for a request that is refused."""
    program = runpy.run_path(str(ROOT / "jobs" / "serve.py"))
    mlflow.set_tracking_uri(uri)
    kind = program["Champion"].func_or_class.__mro__[1]  # the class itself, without what makes it a deployment
    champion = kind(program["Settings"](name=name, alias=alias, poll_seconds=1e6), uri)

    async def alone(given: Any) -> Any:
        return (await kind.score.__wrapped__(champion, [given]))[0]

    async def received() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps({"texts": rows}).encode()}

    champion.score = alone
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, received)
    found = asyncio.run(champion.answer(request))
    return list(json.loads(json.dumps(found["results"], allow_nan=False)))
