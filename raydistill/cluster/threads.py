"""How the threads of torch's CPU kernels wait for each other: asleep, which torch has to be told before it is loaded.

By default they spin. Beside other processes on the same cores (Ray's own are enough) a step then takes 5 to 10 times
as long, and a latency that is measured says little.
"""

from __future__ import annotations

import os
import sys
import warnings

POLICY = "OMP_WAIT_POLICY"


def let_threads_sleep() -> None:
    """Set the policy for torch that is loaded later; what the user has set stays. A warning where it is too late."""
    if POLICY not in os.environ and "torch" in sys.modules:
        warnings.warn(
            "torch was loaded before raydistill, so its CPU threads spin while they wait: beside other processes this "
            f"takes several times as long. Import raydistill before torch, or start Python with {POLICY}=PASSIVE.",
            stacklevel=3,
        )
    os.environ.setdefault(POLICY, "PASSIVE")
