"""What augmentation does to images, each by an operation and numbers of its own, in one kernel.

`operations.py` has the mathematics and the derivatives, `kernel.py` the Triton kernel.
"""
