"""Which dtypes kernels take, and how exactly they multiply float32."""

import torch

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_kernel_dtype(name: str, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` unless Triton kernels compute in ``dtype``."""
    if dtype not in KERNEL_DTYPES:
        raise ValueError(
            f'impl="triton" computes in bfloat16, float16 and float32, got {name} of {dtype}: '
            'use impl="reference", or impl="auto", which falls back to it.'
        )


def float32_precision() -> str:
    """``"tf32"`` where torch's own switch allows it for matrix products, else ``"ieee"``.

    The switch is ``torch.backends.cuda.matmul.fp32_precision`` (or ``allow_tf32``, its older name); off by default.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
