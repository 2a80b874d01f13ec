"""What an update needs, planned from shapes: its memory, the largest batch that fits, the time of a run."""
