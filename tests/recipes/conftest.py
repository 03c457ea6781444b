"""What the tests of the recipes share."""

import functools
import importlib.util
import json

import pytest


@pytest.fixture(autouse=True, scope="session")
def charts_drawn_once():
    """Draws a chart of the same specification once: many tests write the report of one run, changed in a place."""
    if importlib.util.find_spec("vl_convert") is None:
        yield
        return
    import vl_convert

    draw = vl_convert.vegalite_to_svg

    @functools.cache
    def drawn(specification: str) -> str:
        return draw(json.loads(specification))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", lambda chart: drawn(json.dumps(chart)))
        yield
