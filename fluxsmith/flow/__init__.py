"""The mathematics of rectified flow, on images (b, c, h, w). Imports torch and nothing else.

One convention holds everywhere: t runs over [0, 1], 1 is noise and 0 is data.
"""
