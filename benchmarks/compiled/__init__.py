"""What the compilers make of our kernels, read without a GPU."""
