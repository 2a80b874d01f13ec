"""The command line: the commands, and how they are parsed, explained and completed."""
