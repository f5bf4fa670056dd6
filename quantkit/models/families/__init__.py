"""The forward pass of each family of models, one file each; `quantkit.models.registry` lists them."""
