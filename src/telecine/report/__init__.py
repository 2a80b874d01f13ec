"""Reports of runs: videos, plots and an HTML page."""
