"""Tests find the same whatever a user's environment says of hubs, trackers, clusters, proxies and colours."""

from __future__ import annotations

import pytest
from kit.environment import neutralize


@pytest.mark.parametrize(
    "name",
    [
        *("HF_HUB_OFFLINE", "HF_ENDPOINT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_PROFILE", "RAYDISTILL_DEBUG"),
        *("HTTPS_PROXY", "no_proxy", "NO_COLOR", "LC_ALL", "COLUMNS"),
    ],
)
def test_a_setting_of_the_user_is_taken_out(name):
    environment = {name: "1", "PATH": "/bin", "HF_HOME": "/cache"}
    neutralize(environment)
    assert environment == {"PATH": "/bin", "HF_HOME": "/cache", "LANG": "C.UTF-8"}
