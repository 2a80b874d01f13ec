"""Shared by all packages: checks and errors, shapes, precision, randomness, files, devices, the terminal, imports."""
