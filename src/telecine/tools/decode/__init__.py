"""`telecine decode`: the videos of latents in shards."""
