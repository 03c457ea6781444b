"""Reads medical images of any common format, as 8 bits and as normalised tensors."""
