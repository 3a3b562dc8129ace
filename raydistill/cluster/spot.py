"""Passing on that this machine is about to be taken away, so that Ray's workers write a checkpoint before it goes.

``python -m raydistill.cluster.spot`` watches the metadata of an AWS spot instance until notice comes, 2 minutes early;
with ``--seconds N`` there is notice already, as in the preStop hook of a pod. Either drains the node of Ray on this
machine, in the cluster that RAY_ADDRESS names. A recommendation to rebalance is passed over: often nothing follows it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""As AWS's own clients call it."""
DEFAULT_ENDPOINT = "http://169.254.169.254"
DIRECT = build_opener(ProxyHandler({}))
"""The address is this machine's own: a proxy, as http_proxy names one, would ask about another machine, or nobody."""
POLL_SECONDS = 5.0
"""AWS's own advice."""
ANSWER_SECONDS = 2.0
TOKEN_SECONDS = 60
"""Every question has a token of its own."""
DRAIN_SECONDS = 30.0
"""For Ray's command, which takes 3 s on a quiet machine."""


def metadata(name: str) -> str | None:
    """What the instance is told of itself (IMDSv2) under a name; None where there is nothing. Raises OSError where
    nothing answers."""
    token = ask("api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)})
    try:
        return ask(f"meta-data/{name}", "GET", {"X-aws-ec2-metadata-token": token})
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def ask(path: str, method: str, headers: dict[str, str]) -> str:
    endpoint = (os.environ.get(ENDPOINT) or DEFAULT_ENDPOINT).rstrip("/")
    request = Request(f"{endpoint}/latest/{path}", method=method, headers=headers)
    with DIRECT.open(request, timeout=ANSWER_SECONDS) as answer:
        return str(answer.read().decode())


def watch(poll_seconds: float = POLL_SECONDS) -> float | None:
    """Wait for notice; when the instance goes. None at once where it is no spot instance."""
    is_spot = False
    while True:
        try:
            if not is_spot and metadata("instance-life-cycle") != "spot":
                return None
            is_spot = True
            if (notice := metadata("spot/instance-action")) is not None:
                return datetime.fromisoformat(json.loads(notice)["time"]).timestamp()
        except (OSError, ValueError, KeyError) as error:  # the service may be away for a moment
            say(f"no metadata: {type(error).__name__}: {error}")
        time.sleep(poll_seconds)


def drain(seconds: float) -> bool:
    """Tell Ray that this machine's node goes in so many seconds; whether it was taken notice of."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the machine will be taken away"]
    command += ["--deadline-remaining-seconds", str(max(0, int(seconds)))]
    if address := os.environ.get("RAY_ADDRESS"):
        command += ["--address", address]
    try:
        done = subprocess.run(command, timeout=DRAIN_SECONDS, capture_output=True, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"ray drain-node: {error}")
        return False
    if done.returncode:
        say(f"ray drain-node: {done.stderr.strip()}")
    return done.returncode == 0


def drain_until(end: float) -> bool:
    """Drain, again where that fails, until so many seconds since 1970."""
    while not (is_told := drain(end - time.time())) and time.time() < end:
        time.sleep(1.0)
    return is_told


def await_end(end: float) -> None:
    """Wait until Ray's node has ended, at the latest until then: a hook that returns lets it be killed at once."""
    while time.time() < end and any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        time.sleep(0.5)


def say(text: str) -> None:
    print(f"{datetime.now().isoformat(timespec='seconds')} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m raydistill.cluster.spot", description=__doc__)
    parser.add_argument("--seconds", type=float, help="notice has come: the machine goes in so many seconds")
    seconds = parser.parse_args(arguments).seconds
    end = watch() if seconds is None else time.time() + seconds
    if end is None:
        say("no spot instance: nothing to watch")
        return 0
    say(f"this machine goes in {end - time.time():.0f} s")
    is_told = drain_until(end)
    if seconds is not None and is_told:
        await_end(end)
    return 0 if is_told else 1


if __name__ == "__main__":
    sys.exit(main())
