"""Convolutions that choose the fastest of PyTorch's kernels, also where their gradient is differentiated again."""
