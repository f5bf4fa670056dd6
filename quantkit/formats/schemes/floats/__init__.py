"""Schemes whose codes are floats of 4 or 8 bits, and whose factors are floats or powers of two."""
