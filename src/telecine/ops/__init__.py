"""Operations below the networks.

Faster than PyTorch's: `convolution.py`, by the kernels of `convolution_kernels.py`; `scaled_normalize.py`;
`unit_vectors.py`. How gradients are taken: `eager_gradients.py`, `checkpoint_call.py`. Over several processes:
`ranks.py`, `rows.py`, `group_norm.py`. `pass_options.py` reaches layers deep inside a network.
"""
