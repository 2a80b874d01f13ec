"""How clips are selected, read, reconstructed and measured: as settings say, or as published figures were."""
