"""What the tests of pages share: what a page says and draws, a real browser without a network, hostile text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OWN = "document.title='owned'"
HOSTILE = f'</script><img src=x onerror="{OWN}"><script>{OWN}</script>\x00\x1b[31m\u202e\'"&{{{{7*7}}}}\ud800'


class Tags(HTMLParser):
    """Tags with their attributes, and the text that a reader sees, scripts and styles left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data: str) -> None:
        if self.within not in ("script", "style"):
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def figures_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def traces(figure: dict[str, Any]) -> dict[str, list[tuple[Any, Any]]]:
    return {t["name"]: list(zip(t["x"], t["y"], strict=True)) for t in figure["data"]}


def browse(path: Path, script: str = "", width: int = 1200) -> tuple[str, str]:
    """The page's DOM and the browser's console, after a script of the test's own, without any network."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    page_text = path.read_text("utf-8")
    if script:  # the page's own policy runs no other script
        page_text = re.sub(r"<meta http-equiv[^>]*>", "", page_text, count=1)
        page_text = page_text.replace("</body>", f"<script>{script}</script></body>")
        path = path.with_name("scripted.html")
        path.write_text(page_text, "utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={path.parent / 'profile'}"]
    flags += [f"--window-size={width},1000", "--virtual-time-budget=3000", path.as_uri()]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, timeout=60)
    assert done.returncode == 0
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(errors="replace"), "\n".join(console)


def assert_fetches_nothing(text: str) -> None:
    """The page names no other file, and its own policy lets it run two scripts and load none."""
    tags = Tags(text).tags
    assert not [(tag, a) for tag, a in tags for name in a if name in ("src", "href", "srcset", "data", "action")]
    policy = next(a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "unsafe-eval" not in policy
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]
    assert "url(" not in styles
    assert "@import" not in styles


def assert_harmless(text: str) -> None:
    """Hostile text in it is text: no tag, no handler, no script of its own, nothing unseen."""
    tags = Tags(text).tags
    assert not [tag for tag, _ in tags if tag in ("img", "iframe", "object", "embed")]
    assert len([tag for tag, _ in tags if tag == "script"]) == 3
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert not set(text) & {"\x00", "\x1b", "\u202e"}
    assert "<img" not in json.dumps(figures_of(text))
