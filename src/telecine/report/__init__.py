"""Reports of runs: videos, charts and an HTML page."""
