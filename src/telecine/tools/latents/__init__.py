"""`telecine latents`: what the latent space of an autoencoder is like, on a page."""
