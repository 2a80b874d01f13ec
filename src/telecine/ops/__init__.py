"""Convolutions for training on the CPU: the fastest kernel for each shape, and a fast double backward."""
