"""A finished model: opened, measured beside others, exported, sent to a hub, judged by the gate."""
