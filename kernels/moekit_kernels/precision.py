"""How exactly kernels multiply float32."""

import torch


def float32_precision() -> str:
    """Returns ``"tf32"`` where torch's own switch allows it for matrix products, else ``"ieee"``.

    The switch is ``torch.backends.cuda.matmul.fp32_precision`` (or ``allow_tf32``, its older name); off by default.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
