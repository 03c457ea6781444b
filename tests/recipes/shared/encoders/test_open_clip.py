"""Towers of open_clip as encoders, from a checkpoint that the test saves itself: no hub is asked."""

import json

import pytest
import torch

from recipes.shared.encoders.image import ImageEncoder, load_image_encoder
from recipes.shared.encoders.open_clip.text import OpenClipText
from recipes.shared.encoders.spec import ImageEncoderSpec
from recipes.shared.encoders.text import TextEncoder, load_text_encoder
from recipes.shared.encoders.tuning import set_tuning

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}


def save_clip(folder, vision):
    """Writes a folder as open_clip reads it; returns the model."""
    torch.manual_seed(0)
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": True}
    model = open_clip.CLIP(**config).eval()
    folder.mkdir()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "vit"
    return folder, save_clip(folder, VIT)


def encode_text(encoder, text):
    ids = torch.tensor([encoder.tokenizer(text, truncation=True, max_length=77)["input_ids"]])
    return ids, encoder(ids, torch.ones_like(ids))


@torch.no_grad()
def test_both_towers_and_their_projections_give_the_embeddings_of_the_whole_model(vit):
    folder, model = vit
    images = torch.randn(2, 3, 32, 32)
    encoder = load_image_encoder(f"open_clip:{folder}", 32).eval()
    encoded = encoder(images)
    assert encoded.patches.shape == (2, 4, 64)
    assert encoder.grid == (2, 2)
    assert encoder.spec.mean == (0.4, 0.5, 0.6)
    torch.testing.assert_close(encoded.summary @ encoder.projection, model.encode_image(images))

    text_encoder = load_text_encoder(f"open_clip:{folder}").eval()
    text = "No focal consolidation, no pleural effusion."
    ids, states = encode_text(text_encoder, text)
    expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")([text]))
    torch.testing.assert_close(states[:, -1] @ text_encoder.projection, expected)
    padded = torch.cat([ids, torch.zeros(1, 2, dtype=torch.int64)], 1)
    torch.testing.assert_close(text_encoder(padded, (padded > 0).long())[:, : ids.shape[1]], states)


@torch.no_grad()
def test_a_resnet_gives_its_last_map(tmp_path):
    model = save_clip(tmp_path / "resnet", RESNET)
    images = torch.randn(2, 3, 64, 64)
    encoder = load_image_encoder(f"open_clip:{tmp_path / 'resnet'}", 64).eval()
    expected = model.visual.layer4(
        model.visual.layer3(model.visual.layer2(model.visual.layer1(model.visual.stem(images))))
    )
    encoded = encoder(images)
    torch.testing.assert_close(encoded.patches, expected.flatten(2).mT)
    assert encoder.projection is None
    assert encoder.grid == (2, 2)


@torch.no_grad()
def test_towers_are_built_again_without_the_folder(vit, tmp_path):
    folder, _ = vit
    encoder = load_image_encoder(f"open_clip:{folder}", 32).eval()
    text_encoder = load_text_encoder(f"open_clip:{folder}").eval()
    text_encoder.save(tmp_path / "text")
    spec = ImageEncoderSpec.from_json(json.loads(json.dumps(encoder.spec.to_json())))
    again, text_again = ImageEncoder.from_spec(spec).eval(), TextEncoder.from_saved(tmp_path / "text").eval()
    assert isinstance(text_again, OpenClipText)
    again.load_state_dict(encoder.state_dict())
    text_again.load_state_dict(text_encoder.state_dict())
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(images).summary, encoder(images).summary)
    torch.testing.assert_close(encode_text(text_again, "edema")[1], encode_text(text_encoder, "edema")[1])


def test_long_texts_are_cut_and_end_with_their_last_token(vit):
    tokenizer = load_text_encoder(f"open_clip:{vit[0]}").tokenizer
    ids = tokenizer("fever and cough " * 20, truncation=True, max_length=77)["input_ids"]
    assert len(ids) == 16
    assert ids[-1] == tokenizer.simple.eot_token_id
    assert len(tokenizer("fever and cough " * 20, max_length=5)["input_ids"]) == 5


def test_names_and_options_that_do_not_fit_are_refused(vit, tmp_path):
    folder, _ = vit
    with pytest.raises(ValueError, match="no architecture 'ViT-Z'"):
        load_image_encoder("open_clip:ViT-Z/openai", 32)
    with pytest.raises(ValueError, match=r"name the weights too, as in open_clip:ViT-B-32/TAG"):
        load_image_encoder("open_clip:ViT-B-32", 32)
    with pytest.raises(ValueError, match=r'must be "hub" or "random", got .*--image-weights'):
        load_image_encoder(f"open_clip:{folder}", 32, weights="weights.bin")
    text_encoder = load_text_encoder(f"open_clip:{folder}")
    with pytest.raises(ValueError, match=r"layers \(--text-layers\) of a text tower of open_clip must be -1"):
        text_encoder(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3), (-2, -1))
    with pytest.raises(ValueError, match=r"longer than the context of 16 \(--text-tokens\)"):
        text_encoder(torch.zeros(1, 17, dtype=torch.int64), torch.ones(1, 17))
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(RuntimeError, match=r"could not be loaded: .*open_clip:FOLDER"):
        load_image_encoder(f"open_clip:{tmp_path}", 32)


def test_a_spec_from_elsewhere_may_name_no_repository():
    options = {"embed_dim": 8, "quick_gelu": False, "vision_cfg": {"timm_model_name": "hf-hub:some/model"}}
    with pytest.raises(ValueError, match="built without files"):
        ImageEncoderSpec.from_json(
            {"architecture": "x", "size": 8, "mean": [0], "std": [1], "options": options, "library": "open_clip"}
        )


def test_adapters_stand_where_they_are_called_and_checkpointed_activations_give_the_same_gradients(vit):
    pytest.importorskip("peft")
    encoder = load_image_encoder(f"open_clip:{vit[0]}", 32).train()
    images = torch.randn(2, 3, 32, 32)
    set_tuning(encoder.model, "lora", "--image-tuning", rank=2, alpha=4.0)
    encoder.checkpoint_activations()
    encoder(images).patches.square().sum().backward()
    trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora" in name and weight.grad is not None for name, weight in trained.items())


def test_a_resnet_says_that_it_keeps_its_activations(tmp_path):
    save_clip(tmp_path / "resnet", RESNET)
    encoder = load_image_encoder(f"open_clip:{tmp_path / 'resnet'}", 64)
    with pytest.raises(ValueError, match="--activation-checkpointing"):
        encoder.checkpoint_activations()


def test_checkpointed_text_towers_give_the_same_states_and_gradients(vit):
    plain, checkpointed = (load_text_encoder(f"open_clip:{vit[0]}").train() for _ in range(2))
    checkpointed.checkpoint_activations()
    gradients = []
    for encoder in (plain, checkpointed):
        encode_text(encoder, "small effusion")[1].square().sum().backward()
        gradients.append(encoder.model.token_embedding.weight.grad)
    torch.testing.assert_close(*gradients)
