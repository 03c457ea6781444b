"""Every family of transformers with moekit's experts: built small, compared to eager, and in the committed table."""

import pytest
import torch
import transformers

from benchmarks.__main__ import main
from benchmarks.families import blocks as blocks_module
from benchmarks.families import compare as compare_module
from benchmarks.families.blocks import compare_blocks
from benchmarks.families.build import all_families, build, experts_of, families, model_class
from benchmarks.families.command import PAGE
from benchmarks.families.compare import compare, errors, output_of, reloads_equal, same_tokens, tokens
from benchmarks.records import read
from moekit.interop import from_transformers, fused_activation, register_experts

# Of each kind: concatenated, transposed, interleaved with biases, not gated, a norm after each expert, a gate of its
# own, a gate in float32, a skipped expert, a text model of a vision model, linear attention, a shared expert.
REPRESENTATIVE = (
    "aria",
    "beam",
    "deepseek_v4",
    "gpt_oss",
    "mixtral",
    "muse_spark",
    "nemotron_h",
    "qwen2_moe",
    "qwen3_next",
    "qwen3_vl_moe",
    "zaya",
)
# Those whose blocks are converted and swapped, as the documentation says.
WHOLE = (
    *("aria", "dbrx", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss"),
    *("granitemoe", "hunyuan_v1_moe", "jamba", "lfm2_moe", "llama4", "longcat_flash", "minimax_m2", "mixtral"),
    *("nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe", "qwen3_moe", "qwen3_next"),
)
# Those whose gate or norm no fused activation computes.
UNFUSED = {"beam", "inkling2", "inkling2_loop", "muse_spark"}
# No family is left out: each builds.
OTHERS = sorted(set(families()) - set(REPRESENTATIVE))
# Gradients that are sums which cancel, or are zero; there float64 says whether they are right.
CANCELLING = {"deepseek_v4": "mlp.gate.weight", "hy_v4": "hc_head", "hy_v4_vl": "hc_head"}


@pytest.fixture(autouse=True)
def _quiet():
    register_experts()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


def _check(family):
    model = build(family)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        before = output_of(model, tokens())
    fp32 = errors(model)
    assert fp32.output <= 1e-5
    assert fp32.gradients <= 1e-5
    assert fp32.worst <= 1e-5 or CANCELLING.get(family, "none") in fp32.parameter, fp32
    assert errors(build(family, torch.float64)).worst <= 1e-6  # of a model that computes parts in float32
    assert {fused_activation(experts) is None for experts in experts_of(model)} == {family in UNFUSED}
    if model.can_generate():
        assert same_tokens(model)
    assert reloads_equal(model)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(output_of(model, tokens()), before)


@pytest.mark.filterwarnings("ignore")  # of transformers, about the models' own defaults
@pytest.mark.parametrize("family", REPRESENTATIVE)
def test_representative_families_are_eager(family):
    _check(family)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_all_other_families_are_eager(family):
    _check(family)


def test_every_decorated_file_is_a_family_that_has_experts_when_built_small():
    assert len(families()) >= 67 or transformers.__version__ < "5.24"
    assert {"mixtral", "gpt_oss", "qwen3_moe"} <= set(families())
    for family in REPRESENTATIVE:
        with torch.device("meta"):
            assert experts_of(model_class(family)(build(family).config)), family


def test_the_committed_table_has_every_family_and_no_failure():
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert {row[0].strip() for row in rows} == set(all_families())
    assert not [row for row in rows if "no" in (cell.strip() for cell in [*row[1:7], *row[-3:]])]
    experts = [row for row in rows if row[0].strip() in families()]
    assert max(float(cell) for row in experts for cell in row[9:11]) <= 1e-5
    assert max(float(row[12]) for row in experts) <= 1e-6
    assert {row[0].strip() for row in experts if row[8].strip() == "no"} == UNFUSED


def test_the_committed_table_has_every_family_whose_blocks_moekit_computes():
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    computed = {row[0].strip(): row for row in rows if row[1].strip() != "refused"}
    assert set(WHOLE) <= computed.keys()
    assert max(float(row[place]) for row in computed.values() for place in (1, 4)) <= 1e-5
    text = PAGE.read_text()
    for row in rows:
        assert (f"\n- {row[0].strip()}: `" in text) == (row[1].strip() == "refused")


@pytest.mark.filterwarnings("ignore")
def test_blocks_are_compared_and_a_difference_is_seen(monkeypatch):
    comparison = compare_blocks("dbrx")
    assert comparison.refusal is None
    assert max(comparison.convert, comparison.swap) <= 1e-5
    assert comparison.written_back
    assert comparison.works
    assert comparison.swapped_back
    assert "AfmoeSparseMoeBlock" in compare_blocks("afmoe").refusal
    monkeypatch.setattr(blocks_module, "swap_moe_blocks_", _ScaledHead)
    assert compare_blocks("mixtral").swap > 1e-3
    monkeypatch.setattr(blocks_module, "from_transformers", lambda block: _doubled(from_transformers(block)))
    assert compare_blocks("mixtral").convert > 1e-3


class _ScaledHead:
    """Changes a model in place of swapping its blocks."""

    def __init__(self, model):
        self.head = model.lm_head

    def __enter__(self):
        self.head.weight.data.mul_(1.01)

    def __exit__(self, *exception):
        self.head.weight.data.div_(1.01)


def _doubled(layer):
    layer.experts.down_proj.data.mul_(2)
    return layer


def test_the_recorded_times_are_at_most_a_tenth_above_the_faster_of_eager_and_grouped_mm():
    times: dict[tuple[int, str], dict[str, float]] = {}
    for record in read(PAGE.parents[1] / "cpu-transformers.jsonl"):
        if record.status == "ok":
            times.setdefault((record.shape[0], record.direction), {})[record.name] = record.median_ms
    assert {tokens for tokens, _ in times} == {1, 4, 16, 64, 256, 1024, 4096}
    for point, of in times.items():
        faster = min(of["transformers-eager"], of["transformers-grouped_mm"])
        assert of["transformers-moekit"] <= 1.1 * faster, point


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_a_table(tmp_path):
    path = tmp_path / "table.md"
    assert main(["families", "--family", "mixtral", "--out", str(path)]) == 0
    assert "| yes | yes | `MixtralForCausalLM` | `swiglu` | " in path.read_text()
    assert path.read_text().rstrip().endswith("| yes | yes | yes |")


@pytest.mark.filterwarnings("ignore")
def test_a_difference_is_seen(monkeypatch):
    model = build("mixtral")
    real = compare_module.output_of

    def wrong(model, ids):
        return real(model, ids) * (1.01 if model.config._experts_implementation == "moekit" else 1.0)

    monkeypatch.setattr(compare_module, "output_of", wrong)
    assert errors(model).output > 1e-3
    assert errors(model).gradients > 1e-3
    assert not compare("mixtral").fp32.worst <= 1e-5
