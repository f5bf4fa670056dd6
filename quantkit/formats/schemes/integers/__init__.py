"""Schemes whose codes are whole numbers of a few bits, with a scale and a zero for each group of columns."""
