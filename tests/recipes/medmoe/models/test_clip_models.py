"""Models of open_clip and transformers, from checkpoints that these libraries save; no hub is asked."""

import json

import pytest
import torch
from PIL import Image

from recipes.medmoe.models.choice import ModelChoice
from recipes.medmoe.models.load import load_adapter
from tests.recipes.medmoe.models.saved import (
    CLIP_RESNET,
    CLIP_TEXT,
    CLIP_VIT,
    TEXTS,
    picture,
    save_open_clip,
    save_text_tower,
    word_pieces,
)

TIMM_VIT = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
open_clip = pytest.importorskip("open_clip")


def biomed(folder):
    """The form of BiomedCLIP: a ViT of timm, a BERT of transformers with an MLP after its first token."""
    tower = save_text_tower(folder / "hub-tower")
    text = {
        "hf_model_name": str(tower),
        "hf_tokenizer_name": str(tower),
        "hf_proj_type": "mlp",
        "hf_model_pretrained": False,
    }
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24}
    model = save_open_clip(folder / "clip", {**TIMM_VIT, "image_size": 160}, text)
    config = json.loads((folder / "clip" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": "owner/tower", "hf_tokenizer_name": "owner/tower"}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    return model, tower


def check_against_the_library(adapter, model, tokens, size):
    """Embeddings of images of two shapes and of texts are the library's, its own preprocessing included."""
    settings = open_clip.transform.PreprocessCfg(**model.preprocess)
    transform = open_clip.transform.image_transform_v2(settings, is_train=False)
    pictures = [picture(2 * size, 3 * size), picture(3 * size + 1, 2 * size)]
    expected = model.encode_image(torch.stack([transform(Image.fromarray(one)) for one in pictures]), normalize=True)
    fitted = [adapter.preprocess.fit(one) for one in pictures]
    images = adapter.encode_images(adapter.preprocess.batch(fitted))
    torch.testing.assert_close(images.embedding, expected, rtol=0, atol=1e-5)
    texts = adapter.encode_texts(adapter.tokenize(TEXTS))
    torch.testing.assert_close(texts.embedding, model.encode_text(tokens, normalize=True), rtol=0, atol=1e-5)
    assert adapter.scale == pytest.approx(float(model.logit_scale.exp()))
    for row, text in enumerate(TEXTS):
        assert int(texts.mask[row].sum()) == len(adapter.words(text))
    return images, texts


PREPROCESS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@pytest.mark.parametrize(("vision", "grid"), [(CLIP_VIT, 4), (CLIP_RESNET, 2)], ids=["vit", "resnet"])
@torch.no_grad()
def test_a_clip_of_open_clip(tmp_path, vision, grid):
    model = save_open_clip(tmp_path / "clip", vision, quick_gelu=True)
    model.preprocess = {"size": vision["image_size"], **PREPROCESS}
    adapter = load_adapter(ModelChoice(f"open_clip:local-dir:{tmp_path / 'clip'}"))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")(TEXTS)
    assert torch.equal(adapter.tokenize(TEXTS).input_ids, tokens)
    images, _ = check_against_the_library(adapter, model, tokens, vision["image_size"])
    assert images.maps[0].shape == (2, 24, grid, grid)
    assert adapter.words(TEXTS[1]) == ["an", "x", "-", "ray", "of", "the", "chest"]
    assert len(adapter.words("fever " * 50)) == CLIP_TEXT["context_length"] - 2


@torch.no_grad()
def test_a_vit_s_regions_go_through_what_projects_its_class_token(tmp_path):
    model = save_open_clip(tmp_path / "clip", CLIP_VIT)
    adapter = load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}"))
    model.visual.output_tokens = True
    images = torch.randn(2, 3, 32, 32)
    _, patches = model.visual(images)
    features = adapter.encode_images(images)
    torch.testing.assert_close(features.maps[0].flatten(2).mT, patches @ model.visual.proj, rtol=0, atol=1e-5)
    unit = torch.nn.functional.normalize(features.pooled @ model.visual.proj, dim=-1)
    torch.testing.assert_close(unit, features.embedding, rtol=0, atol=1e-5)


@torch.no_grad()
def test_biomedclip_with_its_text_tower_from_a_folder(tmp_path):
    model, tower = biomed(tmp_path)
    model.preprocess = {"size": 160, **PREPROCESS}
    choice = ModelChoice(f"open_clip:{tmp_path / 'clip'}", text_tower=tower)
    tokens = word_pieces()(TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
    images, texts = check_against_the_library(load_adapter(choice), model, tokens, 160)
    assert images.maps[0].shape == (2, 24, 10, 10)
    assert texts.words.shape == (3, 7, 24)
    adapter = load_adapter(ModelChoice(choice.model, text_tower=tower, tokenizer=tower))
    assert adapter.words(TEXTS[1]) == ["An", "X", "-", "ray", "of", "the", "chest"]


def test_what_a_hub_has_and_cannot_be_reached_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    biomed(tmp_path)
    with pytest.raises(RuntimeError, match=r"could not be loaded: .*--text-tower, --tokenizer"):
        load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}"))
    with pytest.raises(RuntimeError, match=r"could not be loaded: .*--model transformers:FOLDER"):
        load_adapter(ModelChoice("transformers:owner/name-that-nobody-has"))


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_open_clip(tmp_path / "clip", CLIP_VIT)
    path = tmp_path / "clip" / "open_clip_pytorch_model.bin"
    state = torch.load(path)
    torch.save({**state, "visual.stray": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"Unexpected key\(s\).*visual\.stray"):
        load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}"))
    del state["visual.ln_post.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"Missing key\(s\).*visual\.ln_post\.bias"):
        load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}"))


def save_transformers_clip(folder):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 64, "max_position_embeddings": 24, "eos_token_id": 3, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8}, projection_dim=24
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images.save_pretrained(folder)
    word_pieces().save_pretrained(folder)
    return model, images


@torch.no_grad()
def test_a_clip_of_transformers(tmp_path):
    model, images = save_transformers_clip(tmp_path / "clip")
    adapter = load_adapter(ModelChoice(f"transformers:{tmp_path / 'clip'}"))
    pictures = [picture(64, 97), picture(64, 64)]
    fitted = adapter.preprocess.batch([adapter.preprocess.fit(one) for one in pictures])
    expected = images([Image.fromarray(one) for one in pictures], return_tensors="pt").pixel_values
    torch.testing.assert_close(fitted, expected, rtol=0, atol=1.5 / 255 / 0.26)  # a step of rounding after resizing
    features = adapter.encode_images(expected)
    unit = torch.nn.functional.normalize(model.get_image_features(expected).pooler_output, dim=-1)
    torch.testing.assert_close(features.embedding, unit, rtol=0, atol=1e-5)
    assert features.maps[0].shape == (2, 24, 4, 4)
    tokens = word_pieces()(TEXTS, padding=True, return_tensors="pt")
    output = model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
    texts = adapter.encode_texts(adapter.tokenize(TEXTS))
    torch.testing.assert_close(texts.embedding, torch.nn.functional.normalize(output, dim=-1), rtol=0, atol=1e-5)
    assert adapter.scale == pytest.approx(float(model.logit_scale.exp()))


def test_weights_of_transformers_that_do_not_fit_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    save_transformers_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    state["stray"] = torch.zeros(1)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys \['visual_projection.weight'\]; unexpected keys \['stray'\]"):
        load_adapter(ModelChoice(f"transformers:{tmp_path / 'clip'}"))


def test_options_that_do_not_belong_are_refused(tmp_path):
    save_open_clip(tmp_path / "clip", CLIP_VIT)
    save_transformers_clip(tmp_path / "hf")
    tower = save_text_tower(tmp_path / "tower")
    with pytest.raises(ValueError, match=r"model \(--model\) must be KIND:NAME_OR_PATH"):
        load_adapter(ModelChoice("clip"))
    with pytest.raises(ValueError, match=r"is no folder.*--tokenizer"):
        load_adapter(ModelChoice("open_clip:x", tokenizer=tmp_path / "absent"))
    with pytest.raises(ValueError, match="text tower of its own: leave out --text-tower"):
        load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}", text_tower=tower))
    with pytest.raises(ValueError, match="tokenizer of its own: leave out --tokenizer"):
        load_adapter(ModelChoice(f"open_clip:{tmp_path / 'clip'}", tokenizer=tower))
    with pytest.raises(ValueError, match="text tower of its own: leave out --text-tower"):
        load_adapter(ModelChoice(f"transformers:{tmp_path / 'hf'}", text_tower=tower))
    with pytest.raises(ValueError, match="is a model of type 'bert', expected 'clip'"):
        load_adapter(ModelChoice(f"transformers:{tower}"))
