"""How clips are selected, read, reconstructed and measured: as settings say, or as published results were.

`interface` has what an evaluation asks of a protocol, `configured` that of settings, `published` that of published
results, and `papers` the protocols of papers by name.
"""
