"""CUDA implementations of the swinopt ops: per op the kernel, its launcher and the NumPy truth."""
