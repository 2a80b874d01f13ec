"""Pruning: a model with a share of the channels of another one, which starts with its weights."""
