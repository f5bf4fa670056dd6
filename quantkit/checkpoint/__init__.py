"""The source: a downloaded checkpoint as configuration, tokenizer files and lazily read tensors."""
