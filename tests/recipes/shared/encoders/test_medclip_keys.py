"""Hugging Face Swin weights, as MedCLIP saves them, give the same maps in timm's Swin."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import SwinConfig, SwinModel

from recipes.shared.encoders import medclip
from recipes.shared.encoders.pyramid import load_pyramid_encoder

SMALL = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}


@pytest.fixture(scope="module")
def theirs():
    """A small Hugging Face Swin with random weights, biases and positions too."""
    torch.manual_seed(0)
    model = SwinModel(SwinConfig(image_size=128, **SMALL)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A timm Swin of the same size; only its configuration matters."""
    path = tmp_path_factory.mktemp("swin") / "timm"
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=128, **SMALL)
    timm.models.save_for_hf(model, path, model_args={"img_size": 128, **SMALL})
    return str(path)


def saved_keys(model, folder):
    """The names that transformers writes to files, which are not those of its modules since version 5."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def as_medclip(state):
    """MedCLIP's checkpoint around the image tower."""
    tower = {f"vision_model.model.{name}": value for name, value in state.items()}
    for stage in range(4):
        tower[f"vision_model.model.encoder.layers.{stage}.blocks.0.attention.self.relative_position_index"] = (
            torch.zeros(16, 16, dtype=torch.int64)
        )
    return tower | {
        "vision_model.projection_head.weight": torch.zeros(512, 192),
        "text_model.model.embeddings.word_embeddings.weight": torch.zeros(10, 8),
        "text_model.projection_head.weight": torch.zeros(512, 8),
        "text_model.projection_head.bias": torch.zeros(512),
        "logit_scale": torch.tensor(1.0),
    }


def hidden_maps(model, images):
    with torch.no_grad():
        out = model(images, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    return out.reshaped_hidden_states[1:]


def assert_same_maps(encoder, model, size):
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours = encoder.eval()(images)
    expected = hidden_maps(model, images)
    assert len(ours) == len(expected) == 4
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spelling", ["files", "modules"])
def test_the_medclip_checkpoint_gives_the_same_maps_at_all_scales(theirs, folder, tmp_path, spelling):
    state = saved_keys(theirs, tmp_path) if spelling == "files" else theirs.state_dict()
    assert any("attention.self.query" in name for name in state) == (spelling == "files")
    file = tmp_path / "pytorch_model.bin"
    torch.save(as_medclip(state), file)
    encoder = load_pyramid_encoder(folder, 128, weights=str(file))
    assert_same_maps(encoder, theirs, 128)
    assert encoder.spec.mean == medclip.MEDCLIP_MEAN
    assert encoder.spec.std == medclip.MEDCLIP_STD


def test_a_hugging_face_swin_alone_is_known_too(theirs, folder, tmp_path):
    saved_keys(theirs, tmp_path)
    encoder = load_pyramid_encoder(folder, 128, weights=str(tmp_path / "model.safetensors"))
    assert_same_maps(encoder, theirs, 128)
    assert encoder.spec.mean == (0.485, 0.456, 0.406)


def test_swin_tiny_of_both_libraries_is_the_same_model(tmp_path):
    torch.manual_seed(0)
    model = SwinModel(SwinConfig(image_size=224, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))).eval()
    torch.save(as_medclip(saved_keys(model, tmp_path)), tmp_path / "pytorch_model.bin")
    encoder = load_pyramid_encoder("swin_tiny_patch4_window7_224", 224, weights=str(tmp_path / "pytorch_model.bin"))
    assert encoder.channels == (96, 192, 384, 768)
    assert_same_maps(encoder, model, 224)


@pytest.mark.parametrize("part", ["query.weight", "downsample.norm.weight", "layernorm_after.bias"])
def test_a_weight_that_is_missing_is_named(theirs, folder, tmp_path, part):
    state = as_medclip(saved_keys(theirs, tmp_path))
    gone = next(name for name in state if name.endswith(part) and ".layers.1." in name)
    del state[gone]
    torch.save(state, tmp_path / "weights.bin")
    ours = {"query.weight": r"layers_1\.blocks\.0\.attn\.qkv\.weight", "layernorm_after.bias": r"layers_1.*norm2\.bias"}
    name = ours.get(part, r"layers_2\.downsample\.norm\.weight")
    with pytest.raises(ValueError, match=f"does not hold the weights of swin_tiny.*: 1 missing .{name}"):
        load_pyramid_encoder(folder, 128, weights=str(tmp_path / "weights.bin"))


def test_a_weight_that_is_not_known_is_named(theirs, folder, tmp_path):
    state = as_medclip(saved_keys(theirs, tmp_path))
    state["vision_model.model.encoder.layers.0.blocks.0.adapter.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"0 missing, 1 unexpected \(vision_model\.model\..*adapter\.weight\)"):
        load_pyramid_encoder(folder, 128, weights=str(tmp_path / "weights.bin"))


def test_other_state_dicts_are_left_alone():
    assert not medclip.is_hugging_face_swin(timm.create_model("test_resnet").state_dict())
    vit = {"embeddings.patch_embeddings.projection.weight": torch.zeros(1)}
    assert not medclip.is_hugging_face_swin(vit)
