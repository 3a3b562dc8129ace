"""What tests share: a toy problem, tiny models, whole runs as processes, clusters, servers, pages in a browser."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
