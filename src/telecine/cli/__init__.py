"""The command line: the program and its commands, and how they are parsed, explained and completed."""
