"""The command line: commands, what they print, `submit` and `doctor`. It stands above everything else."""
