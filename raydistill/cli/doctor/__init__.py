"""`raydistill doctor`: whether this machine, or every node of a cluster, has what a run needs."""
