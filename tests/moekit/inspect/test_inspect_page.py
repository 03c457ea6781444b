"""The page holds the record, loads nothing, and works in a browser."""

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from moekit.inspect import LayerRecord, RoutingRecord, record_routing
from moekit.observers import RoutingEvent
from tests.moekit.inspect.models import DIM, collapsed, stack

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def record() -> RoutingRecord:
    model = nn.ModuleDict({"bad": collapsed(), "good": stack(2, capacity_factor=0.5)})
    with record_routing(model, label_names=("noun", "<b>verb")) as record:
        for _ in range(70):
            x = torch.randn(12, DIM)
            record.label(torch.arange(12) % 2)
            model["good"](x)
            model["bad"](x)
    return record


def test_the_page_holds_the_record_and_its_findings(record: RoutingRecord, tmp_path: Path) -> None:
    record.write_page(tmp_path / "page.html", title="<script>alert(1)</script> & more")
    page = (tmp_path / "page.html").read_text()
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt; &amp; more</title>" in page
    (data,) = re.findall(r'id="data">([^<]*)</script>', page)
    document = json.loads(gzip.decompress(base64.b64decode(data)))
    record.save(tmp_path / "record.json.gz")
    assert document["record"] == json.loads(gzip.decompress((tmp_path / "record.json.gz").read_bytes()))
    assert [each["text"] for each in document["findings"]] == [each.text for each in record.findings()]
    assert document["summaries"] == [each._asdict() for each in record.summaries()]
    assert sum(each["calls"] for each in document["over_time"][0]) == 70


def test_the_page_loads_nothing(record: RoutingRecord, tmp_path: Path) -> None:
    record.write_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r"https?:|//[a-z]|@import|url\(|<link|\bsrc=|\bfetch\(|@@", page.replace("// ", "")) == []


_USE = """
<script>
const shown = (name, value) => { document.body.dataset[name] = value; };
addEventListener("error", (event) => shown("error", event.message));
setTimeout(() => {
  const texts = (path) => [...document.querySelectorAll(path)].map((each) => each.textContent);
  const order = () => texts("#layers tbody td:first-child").join(",");
  shown("findings", texts("#findings li").join("|"));
  shown("layer", document.getElementById("picker").value);
  [...document.querySelectorAll("th button")].find((each) => each.textContent.startsWith("max/mean")).click();
  shown("down", order());
  [...document.querySelectorAll("th button")].find((each) => each.textContent.startsWith("max/mean")).click();
  shown("up", order());
  document.getElementById("next").click();
  shown("next", document.getElementById("picker").value);
  shown("canvases", [...document.querySelectorAll("figure:not([hidden]) canvas")].length);
  const point = (id, x, y) => {
    const canvas = document.querySelector(`#${id} canvas`);
    const box = canvas.getBoundingClientRect();
    canvas.onpointermove({ clientX: box.left + x * box.width, clientY: box.top + y * box.height });
    return document.getElementById("tip").textContent;
  };
  shown("load", point("load", 0.2, 0.5));
  shown("time", point("time", 0.3, 0.1));
  shown("balance", point("balance", 0.5, 0.5));
  shown("pairs", point("coactivation", 0.3, 0.05));
  shown("labels", point("labels", 0.5, 0.2));
  document.getElementById("theme").value = "dark";
  document.getElementById("theme").onchange();
  shown("used", document.documentElement.dataset.theme);
}, 1500);
</script>
</body>"""


def shown_in_a_browser(record: RoutingRecord, folder: Path) -> dict[str, str]:
    """Returns what the script above reads of the page of a record."""
    path = folder / "page.html"
    record.write_page(path)
    path.write_text(path.read_text().replace("</body>", _USE))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options = ["--window-size=1200,900", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    (body,) = re.findall(r"<body([^>]*)>", done.stdout)
    shown = {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', body)}
    assert shown.get("error") is None
    return shown


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or google-chrome")
def test_the_page_works_in_a_browser(record: RoutingRecord, tmp_path: Path) -> None:
    shown = shown_in_a_browser(record, tmp_path)
    assert shown["findings"].startswith("collapsebad: 100 % of slots go to expert 1")
    assert shown["layer"] == "0"
    names = sorted(record.summaries(), key=lambda each: each.max_violation or 0.0)
    assert shown["up"].split(",") == [each.name for each in names]
    assert shown["down"].split(",") == [each.name for each in reversed(names)]
    assert (shown["next"], shown["canvases"], shown["used"]) == ("1", "6", "dark")
    layer = record.layers["good.0.moe"]
    load, dropped = layer.load.sum(0), layer.dropped.sum(0)
    slots = f"{100 * load[0] / load.sum():.1f} %\n{int(load[0]):,} slots, {int(dropped[0]):,} dropped"
    assert shown["load"] == f"expert 0: {slots}"
    assert re.fullmatch(r"expert 0, calls \d+ to \d+\n[\d.]+ % of the slots", shown["time"])
    assert re.fullmatch(r"calls \d+ to \d+\nmax / mean: [\d.]+", shown["balance"])
    assert re.match(r"of the [\d,]+ tokens of expert 0\n[\d.]+ % also chose expert \d", shown["pairs"])
    assert re.match(r"noun, expert \d\n[\d.]+ % of the label, [\d,]+ slots", shown["labels"])


@pytest.fixture(scope="module")
def large_record() -> RoutingRecord:
    """Of 24 layers with 128 experts and 10 labels, as 1,000 calls leave it."""
    generator = torch.Generator().manual_seed(0)
    events = [
        RoutingEvent(nn.Identity(), 128, expert_ids=torch.rand(64, 128, generator=generator).argsort(-1)[:, :8])
        for _ in range(7)
    ]
    layers = {f"layers.{index}.mlp": LayerRecord(128, num_labels=10) for index in range(24)}
    for layer in layers.values():
        # Windows of 16 calls.
        for call in range(63):
            layer.add(events[call % 7], torch.arange(64) % 10)
        windows = layer.windows * 16
        windows[:, -256:-128] += torch.randint(0, 1000, (63, 128))  # loads that do not compress
        layer.fill(windows, top_k=8, width=16)
        layer.coactivation = layer.coactivation * 16 + torch.randint(0, 1000, layer.coactivation.shape)
    return RoutingRecord(layers, [f"label {index}" for index in range(10)])


def test_a_record_of_24_layers_and_1000_calls_and_its_page_stay_under_5_mb(
    large_record: RoutingRecord, tmp_path: Path
) -> None:
    large_record.save(tmp_path / "record.json.gz")
    large_record.write_page(tmp_path / "page.html")
    assert (tmp_path / "record.json.gz").stat().st_size < 5e6
    assert (tmp_path / "page.html").stat().st_size < 5e6


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or google-chrome")
def test_a_page_of_24_layers_and_1000_calls_opens(large_record: RoutingRecord, tmp_path: Path) -> None:
    shown = shown_in_a_browser(large_record, tmp_path)
    assert len(shown["up"].split(",")) == 24
    layer = large_record.layers[list(large_record.layers)[int(shown["next"])]]
    assert shown["time"].endswith(" % of the slots")
    load = layer.load.sum(0)
    (expert,) = map(int, re.findall(r"expert (\d+):", shown["load"]))
    assert f"{100 * load[expert] / load.sum():.1f} %\n{int(load[expert]):,} slots" in shown["load"]
