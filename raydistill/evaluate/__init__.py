"""What models are worth: predictions, metrics with intervals, comparisons, latency, the gate's rules, the report."""
