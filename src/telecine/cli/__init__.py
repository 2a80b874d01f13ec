"""The command line: the commands, and how their arguments are parsed, explained and completed."""
