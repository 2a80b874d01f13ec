"""The command line: commands, their arguments, and the tables that they print."""
