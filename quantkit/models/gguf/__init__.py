"""GGUF: what its files call the fields of a config and the tensors of a program, for each architecture of llama.cpp."""
