"""The settings of all commands, and how they are read. Needs no PyTorch."""
