"""Federated averaging by two processes: what is equal on both after a round, and what one process would compute."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from examples import federated
from examples.federated import Classifier, Site, average_, draw_site, is_shared, run_rounds, train_locally

ROOT = Path(__file__).parents[2]
STUDIES = (30, 70)


RUNS = {
    "shared routers": {"local_routers": False, "steps": 3, "rounds": 4, "balance_weight": 0.01},
    "local routers": {"local_routers": True, "steps": 3, "rounds": 4, "balance_weight": 0.01},
    "one step": {"local_routers": False, "steps": 1, "rounds": 3, "balance_weight": 0.0},
}


def _site(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    outcomes = {}
    for name, options in RUNS.items():
        torch.manual_seed(0)
        model = Classifier().double()
        site = draw_site(rank, STUDIES[rank])
        site = Site(site.features.double(), site.labels)
        losses = run_rounds(model, site, lr=0.2, **options)
        outcomes[name] = {"weights": model.state_dict(), "losses": losses}
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_sites(tmp_path_factory):
    """The weights and losses of both sites in every run; the runs share two processes, whose start takes the time."""
    folder = tmp_path_factory.mktemp("sites")
    context = multiprocessing.get_context("spawn")
    sites = [context.Process(target=_site, args=(rank, str(folder))) for rank in (0, 1)]
    for site in sites:
        site.start()
    for site in sites:
        site.join(240)
    assert [site.exitcode for site in sites] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["shared routers", "local routers"])
def test_sites_share_all_but_local_routers_and_the_loss_falls(two_sites, name):
    first, second = (site[name] for site in two_sites)
    names = first["weights"].keys()
    routers = {one for one in names if ".router." in one}
    assert routers
    different = {one for one in names if not torch.equal(first["weights"][one], second["weights"][one])}
    assert different == (routers if name == "local routers" else set())
    assert first["losses"] == second["losses"]
    assert first["losses"][-1] < first["losses"][0]


def test_one_local_step_on_all_studies_is_the_step_of_all_studies_together(two_sites):
    # The mean of gradients, weighted by studies, is the gradient of all studies, if the loss is a mean over studies:
    # balancing is not, so it is left out.
    federated_run = two_sites[0]["one step"]
    torch.manual_seed(0)
    model = Classifier().double()
    sites = [draw_site(rank, studies) for rank, studies in enumerate(STUDIES)]
    features = torch.cat([site.features for site in sites]).double()
    labels = torch.cat([site.labels for site in sites])
    losses = [train_locally(model, lambda: model(features, labels, 0.0), steps=1, lr=0.2) for _ in range(3)]
    assert federated_run["losses"] == pytest.approx(losses, rel=1e-12)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(federated_run["weights"][name], weight, rtol=1e-10, atol=1e-12)


def test_only_routers_stay_local():
    names = list(Classifier().state_dict())
    assert all(is_shared(name, local_routers=False) for name in names)
    local = [name for name in names if not is_shared(name, local_routers=True)]
    assert local == [name for name in names if name.startswith("moe.router.")]
    assert not is_shared("router.gate.weight", local_routers=True)


def test_the_mean_counts_studies(tmp_path, monkeypatch):
    sent = []

    def add_other_site(tensor):
        sent.append(tensor.clone())
        tensor += 3 if tensor.ndim == 0 else 6.0 * 3 / 4  # of 3 studies whose weights are 6, beside one study

    monkeypatch.setattr(federated.dist, "all_reduce", add_other_site)
    weight = torch.full((2,), 2.0)
    average_([("head.weight", weight)], 1, local_routers=False)
    assert weight.tolist() == [5.0, 5.0]  # (1 * 2 + 3 * 6) / 4
    assert len(sent) == 2


def test_the_example_runs_as_documented():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "examples/federated.py", "--rounds", "3", "--local-routers"],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(value) for value in re.findall(r"round +\d+  loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
