"""The compute package of quantkit: block formats, kernels, and the interpreter that runs a program of them.

Importing this package loads nothing; `blocks` needs numpy alone, every other module needs numba.
"""
