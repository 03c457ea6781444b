"""The preset ``paper`` is built at its size on the meta device."""

import torch

from benchmarks.train_step.medmoe import CLINICAL_VOCABULARY, random_model
from recipes.medmoe.config import paper


def test_the_paper_preset_has_the_sizes_of_its_parts() -> None:
    with torch.device("meta"):
        model = random_model(paper())
    assert all(parameter.is_meta for parameter in model.parameters())

    def count(*names: str) -> int:
        return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())

    width, layers, positions = 768, 12, 512
    block = 4 * (width * width + width) + 2 * 4 * width * width + 5 * width + 2 * 2 * width
    embeddings = (CLINICAL_VOCABULARY + positions + 2) * width + 2 * width
    assert count("text_encoder") == embeddings + layers * block  # BERT base without its pooler
    assert count("image_projection", "text_projection", "word_projection") == 3 * (width * width + width)
    # The image side that Table 3 counts; the paper prints 37 M.
    parts = ("image_encoder", "image_projection", "moe", "router_norm", "region_projection")
    assert model.moe.experts.num_experts == 6
    assert round(count(*parts) / 1e6, 2) == 36.32
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any(name.startswith("text_encoder.") for name in trained)
    assert model.image_encoder.sizes == ((56, 56), (28, 28), (14, 14), (7, 7))
