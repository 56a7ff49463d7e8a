"""The network of FLUX.1, on tokens (b, l, d): it never sees an image.

Letters in shape comments: b batch, l sequence length, d hidden width, h heads, k head width.
"""
