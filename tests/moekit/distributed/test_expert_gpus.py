"""Divided experts on GPUs with NCCL: the results of one process, and exchanges beside what is computed meanwhile."""

import multiprocessing
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from moekit import SparseMoE
from moekit.distributed import average_gradients_, expert_parallel_

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs or more, got {GPUS}")]

DIM = 64


def make_layer() -> SparseMoE:
    torch.manual_seed(0)
    return SparseMoE.ffn(DIM, 128, num_experts=8, top_k=2, shared_hidden_dim=256).cuda()


def batch(rank: int, size: int) -> Tensor:
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(rank)).cuda()


def gradients_of(layer: SparseMoE) -> dict[str, Tensor]:
    grads = {name: each.grad for name, each in layer.named_parameters()}
    return {name: (each.full_tensor() if hasattr(each, "full_tensor") else each).cpu() for name, each in grads.items()}


def work(rank: int, folder: str, options: dict[str, Any], results: Any) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.cuda.set_device(rank)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    mesh = init_device_mesh("cuda", (2,), mesh_dim_names=("ep",))
    layer = expert_parallel_(make_layer(), mesh["ep"], **options)
    for _ in range(3):  # memory that an exchange still reads must not be given away
        layer.zero_grad()
        x = batch(rank, 512).requires_grad_()
        output = layer(x).output
        output.sin().mean().backward()
    average_gradients_(layer)
    results.put((rank, output.detach().cpu().numpy(), x.grad.cpu().numpy(), gradients_of(layer)))
    results.close()
    results.join_thread()
    dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}, {"deduplicate": True}, {"max_slots_factor": 2.0}])
def test_results_are_those_of_one_process(tmp_path, options: dict[str, Any]) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, str(tmp_path), options, results)) for rank in range(2)]
    for process in processes:
        process.start()
    by_rank = {rank: rest for rank, *rest in (results.get(timeout=300) for _ in processes)}
    for process in processes:
        process.join()
    layer = make_layer()
    inputs = [batch(rank, 512).requires_grad_() for rank in range(2)]
    outputs = [layer(x).output for x in inputs]
    torch.stack([output.sin().mean() for output in outputs]).mean().backward()
    expected = gradients_of(layer)
    for rank, (output, gradient, gradients) in by_rank.items():
        torch.testing.assert_close(torch.from_numpy(output), outputs[rank].detach().cpu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(gradient) / 2, inputs[rank].grad.cpu(), rtol=1e-4, atol=1e-7)
        for name, each in gradients.items():
            torch.testing.assert_close(each, expected[name], rtol=1e-4, atol=1e-6)
