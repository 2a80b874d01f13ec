"""`telecine encode`: the latents of a data set, in shards."""
