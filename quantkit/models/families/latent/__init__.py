"""Decoders whose keys and values are made of one short row for each token, a latent."""
