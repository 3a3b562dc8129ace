"""`raydistill submit` and its kin: a command packed up, sent to a cluster's job server, followed and stopped."""
