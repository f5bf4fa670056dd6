"""The forward pass of each family of models, one file each; `quantkit.models.registry` lists them.

`dense` has decoders in the line of Llama, `gpt` those in the line of GPT, `gemma` Google's, `mixtures` those with
experts, `latent` those whose keys and values are made of latents, with experts or without, `hybrid` those that keep a
state per sequence in some or all layers. A family with both stands where its first model stands. What several of them
share is in `quantkit.models.decoder`.
"""
