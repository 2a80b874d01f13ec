"""The command line: the commands (`commands.py`), and how they are parsed, explained and completed."""
