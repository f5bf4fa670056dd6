"""Google's families: Gemma 1 to 4, as text."""
