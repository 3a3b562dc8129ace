"""The one training loop, its optimizer and checkpoints, and the checks before it starts."""
