"""What happens to one token's row between the matrix products.

A row holds f32 columns. It is padded to a multiple of 16 columns; the padding may be read and overwritten, and its
content means nothing. Every function takes one token, and `out` may be a row that it reads.
"""
