"""A user's environment, which must not change what tests find."""

from __future__ import annotations

from collections.abc import MutableMapping

PREFIXES = ("AWS_", "HF_", "LC_", "MLFLOW_", "RAY_", "RAYDISTILL_", "TRANSFORMERS_")
NAMES = ("CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LANGUAGE", "LINES", "NO_COLOR", "PYTHONWARNINGS")
PROXIES = ("all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy")
KEPT = ("HF_HOME", "RAYDISTILL_CACHE")
"""Where caches lie."""


def neutralize(environment: MutableMapping[str, str]) -> None:
    """Take out what speaks to hubs, trackers, clusters, storage and proxies, or of colours; texts are in UTF-8."""
    for name in list(environment):
        if name not in KEPT and (name.startswith(PREFIXES) or name in NAMES or name.lower() in PROXIES):
            del environment[name]
    environment["LANG"] = "C.UTF-8"
