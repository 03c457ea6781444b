"""Table 3: figures by counting, each by the convention that the paper's figure comes from."""

import csv
import json

import pytest
import torch
from torch import nn

from recipes.medmoe.__main__ import main
from recipes.medmoe.flops import table3
from recipes.medmoe.flops.conventions import count_macs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The table by the command line, with one of MedMoE's two rows (the tests of ``flops`` count it too)."""
    pytest.importorskip("open_clip")
    out = tmp_path_factory.mktemp("tables") / "new" / "table3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table3, "_FORMS", (("release", True),))
        main(["table3", "--out", str(out)])
    return out


def rows_of(out):
    return {row["model"]: row for row in csv.DictReader((out / "table3.csv").read_text().splitlines())}


@pytest.mark.parametrize(
    ("model", "params", "convention", "gmacs"),
    [
        ("CLIP RN50", "38.32", "fvcore", "6.13"),
        ("BiomedCLIP", "86.19", "modules", "16.8"),
        ("UniMed-CLIP", "86.19", "modules", "11.3"),
        ("MedCLIP", "27.52", "fvcore", "4.5"),
    ],
)
def test_each_figure_is_had_by_its_convention(written, model, params, convention, gmacs):
    row = rows_of(written)[model]
    assert f"{float(row['params_m']):.2f}" == params
    assert row["convention"] == convention
    digits = len(gmacs.partition(".")[2])
    assert f"{float(row[f'gmacs_{convention}']):.{digits}f}" == gmacs
    assert float(row["gmacs_less_paper"]) == pytest.approx(
        float(row[f"gmacs_{convention}"]) - float(row["paper_gmacs"]), abs=1e-3
    )


def test_the_two_vits_are_one_where_every_product_is_counted(written):
    rows = rows_of(written)
    assert rows["BiomedCLIP"]["gmacs_products"] == rows["UniMed-CLIP"]["gmacs_products"] == "17.563"
    text = (written / "table3.md").read_text()
    assert "have the same ViT-B/16, which the paper gives 16.8 and 11.29" in text
    assert "The paper's row of MedMoE has the parameters of all experts beside the operations of one" in text


def test_all_experts_of_the_release_s_form_take_part(written):
    row = rows_of(written)["MedMoE, all experts run"]
    assert row["params_m"] == row["params_active_m"]
    assert row["paper_gmacs"] == ""
    kept = json.loads((written / "table3.json").read_text())
    assert kept["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (written / "table3.png").stat().st_size > 10_000


def test_conventions_of_a_layer_whose_counts_are_known():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, stride=4, bias=False)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 5)

        def forward(self, images):
            tokens = self.conv(images).flatten(2).mT
            return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0])

    for device in ("cpu", "meta"):
        with torch.device(device):
            macs = count_macs(Small().eval(), torch.zeros(1, 3, 16, 16))
        tokens = 16
        patches, last = tokens * 8 * 48, tokens * 8 * 5
        assert macs.modules == patches + last
        assert macs.products == patches + last + 4 * tokens * 8 * 8 + 2 * tokens * tokens * 8
        assert macs.fvcore >= patches + last


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .*--out FOLDER"):
        table3.main(out=tmp_path / "file")
