"""Tools around the core: each uses settings, data, models, training and evaluation as a user could."""
