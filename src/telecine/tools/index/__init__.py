"""`telecine data index`: the exact indices of a data set, made before training by any number of processes."""
