"""The page in a browser: what it shows, what changes, and that it loads nothing from elsewhere."""

import shutil
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed on this machine; none is downloaded."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)}")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def shares(page, place):
    """Returns titles and numbers of a table of bars."""
    table = page.locator("#shown table").nth(place)
    numbers = map(float, table.locator("td.r").all_text_contents())
    return dict(zip(table.locator("th").all_text_contents(), numbers, strict=True))


OVERLAY = "#shown .frame img + img"


def wait_for_another_overlay(page, before):
    """Waits for an answer whose attention map is another."""
    page.wait_for_function(
        "([place, before]) => { const image = document.querySelector(place); return image && image.src !== before }",
        arg=[OVERLAY, before],
    )
    return page.locator(OVERLAY).get_attribute("src")


def test_an_example_an_edited_text_and_an_upload(server, trained_run, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 1050})
    page.set_default_timeout(60_000)
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#predict")
    assert "Not a medical device." in page.locator(".about").inner_text()

    page.click("#example input")
    page.click("ul[role=listbox] li >> nth=0")
    page.wait_for_selector("#shown table")
    name = page.input_value("#example input").partition(": ")[2]
    table = pd.read_csv(trained_run / "predictions.csv")
    row = table[(table["id"] == name) & (table["split"] == "test")].iloc[0]
    for title, value in shares(page, 0).items():
        assert value == pytest.approx(row[f"calibrated:{title}"], abs=0.0051)
    gates = shares(page, 1)
    marked = page.locator("#shown table").nth(1).locator("tr.present th").all_text_contents()
    assert sorted(marked) == sorted(f"Expert E{expert}" for expert in str(row["experts"]).split(";"))
    assert sum(gates.values()) == pytest.approx(1, abs=0.03)
    assert page.locator("#shown .frame img").count() == 3
    overlay, probs = page.locator(OVERLAY).get_attribute("src"), shares(page, 0)
    page.screenshot(path=tmp_path / "example.png", full_page=True)

    page.fill("#text textarea", "Stab wound to the chest. <b>& \U0001f480")
    page.click("#predict")
    overlay = wait_for_another_overlay(page, overlay)
    assert shares(page, 0) != probs
    page.screenshot(path=tmp_path / "edited.png", full_page=True)

    pixels = np.random.default_rng(0).integers(0, 255, (70, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own image.png")
    (tmp_path / "note.png").write_text("no image at all")
    page.set_input_files("#upload input[type=file]", tmp_path / "own image.png")
    wait_for_another_overlay(page, overlay)
    page.screenshot(path=tmp_path / "upload.png", full_page=True)
    page.click("#upload button[aria-label*='lear'], #upload button[aria-label*='emove']")
    page.set_input_files("#upload input[type=file]", tmp_path / "note.png")
    page.wait_for_selector("#shown .message >> text=cannot be read")
    assert "cannot identify its kind" in page.locator("#shown").inner_text()

    assert {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert not problems
    page.close()
