"""Tables and lines for the terminal: a plan, results, verdicts, sweeps, and lists of what there is."""
