"""What the device at hand can do: a large matrix product and a copy, measured in the run that is compared with them."""

from typing import NamedTuple

import torch

from benchmarks.records import Record
from benchmarks.timing import Step, time_steps


class Ceilings(NamedTuple):
    """The two limits of a roofline.

    Attributes:
        tflops: 10^12 operations a second of a large matrix product.
        gbps: 10^9 bytes a second of a copy, bytes read and bytes written both counted.
    """

    tflops: float
    gbps: float


def measure(
    device: torch.device, dtype: torch.dtype, dtype_name: str, seconds: float = 1.0, tiny: bool = False
) -> list[Record]:
    """Times ``(8192, 8192) @ (8192, 8192)`` on random numbers and a copy of 4 GiB; on CPU 2048 and 256 MiB.

    With ``tiny`` both are too small to mean anything: for rehearsals.
    """
    on_gpu = device.type == "cuda"
    width = 64 if tiny else 8192 if on_gpu else 2048
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.empty(width, width, device=device, dtype=dtype).normal_(generator=generator) for _ in range(2))
    product = torch.empty_like(a)
    timing = time_steps([Step(lambda _: torch.mm(a, b, out=product))], device, seconds=seconds)
    matmul = Record("ceiling", "matmul", dtype=dtype_name, remark=f"{width} x {width} x {width}")
    records = [matmul.timed(timing, flops=2 * width**3)]
    size = 1 << 20 if tiny else 4 << 30 if on_gpu else 256 << 20
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_(generator=generator)
    target = torch.empty_like(source)
    timing = time_steps([Step(lambda _: target.copy_(source))], device, seconds=seconds)
    copy = Record("ceiling", "copy", remark=f"{size >> 20} MiB, bytes read and written counted")
    return [*records, copy.timed(timing, least_bytes=2 * size)]


def ceilings_of(records: list[Record], dtype: str) -> Ceilings | None:
    """Returns the ceilings among records; None unless both were measured."""
    matmul = [r.tflops for r in records if (r.kind, r.name, r.dtype) == ("ceiling", "matmul", dtype) and r.tflops]
    copy = [r.gbps for r in records if (r.kind, r.name) == ("ceiling", "copy") and r.gbps]
    return Ceilings(matmul[-1], copy[-1]) if matmul and copy else None
