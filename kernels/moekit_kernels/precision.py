"""How exactly kernels multiply float32."""

import torch


def float32_precision(dtype: torch.dtype = torch.float32) -> str:
    """Returns ``"tf32"`` where torch's own switch allows it for matrix products of ``dtype``, else ``"ieee"``.

    The switch is ``torch.backends.cuda.matmul.fp32_precision`` (or ``allow_tf32``, its older name); off by default.
    """
    # Of float32 alone; first, because torch takes a microsecond to read the switch.
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
