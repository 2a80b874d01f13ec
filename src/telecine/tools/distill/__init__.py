"""`telecine distill`: a small decoder, or autoencoder, that learns from another one."""
