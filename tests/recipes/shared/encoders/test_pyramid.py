"""Feature pyramids from timm: what they announce is what they give, whatever the architecture and the source."""

import pytest
import timm
import torch

from recipes.shared.encoders.image import load_image_encoder
from recipes.shared.encoders.pyramid import PyramidEncoder, load_pyramid_encoder
from recipes.shared.encoders.spec import ImageEncoderSpec

NAMES = ["swin_tiny_patch4_window7_224", "test_byobnet", "test_convnext", "test_efficientnet", "test_mambaout"]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """As on a machine that cannot reach a hub: clients answer at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_what_is_announced_fine_to_coarse_and_keep_places(name):
    """A change in one corner of the image moves every map most in that corner."""
    torch.manual_seed(0)
    size = 224 if "swin" in name else 128
    encoder = load_pyramid_encoder(name, size, weights="random").eval()
    x = torch.randn(1, 3, size, size)
    y = x.clone()
    y[..., -size // 6 :, : size // 6] += 3.0  # bottom left
    with torch.no_grad():
        a, b = encoder(x), encoder(y)
    assert encoder.reductions == (4, 8, 16, 32)
    assert encoder.sizes == tuple((size // r, size // r) for r in encoder.reductions)
    assert tuple(m.shape[1:] for m in a) == tuple((c, *s) for c, s in zip(encoder.channels, encoder.sizes, strict=True))
    assert encoder.dim == encoder.channels[-1]
    for before, after in zip(a, b, strict=True):
        change = (before - after).norm(dim=1)[0]
        row, column = divmod(int(change.argmax()), change.shape[1])
        assert row >= change.shape[0] / 2
        assert column < change.shape[1] / 2


@pytest.mark.parametrize("name", NAMES[1:])
def test_it_is_built_again_from_its_spec(name):
    encoder = load_pyramid_encoder(name, 96, weights="random")
    again = PyramidEncoder.from_spec(ImageEncoderSpec.from_json(encoder.spec.to_json()))
    again.load_state_dict(encoder.state_dict())
    assert again.sizes == encoder.sizes == ((24, 24), (12, 12), (6, 6), (3, 3))
    x = torch.randn(1, 3, 96, 96)
    for a, b in zip(encoder.eval()(x), again.eval()(x), strict=True):
        assert torch.equal(a, b)


def test_fewer_scales_are_the_coarsest():
    encoder = load_pyramid_encoder("test_byobnet", 96, weights="random", scales=2)
    assert encoder.reductions == (16, 32)
    assert PyramidEncoder.from_spec(encoder.spec).reductions == (16, 32)


@pytest.mark.parametrize("name", NAMES)
def test_a_timm_file_with_its_head_gives_the_whole_models_maps(name, tmp_path):
    torch.manual_seed(0)
    size = 224 if "swin" in name else 96
    whole = timm.create_model(name).eval()
    torch.save({"state_dict": whole.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    encoder = load_pyramid_encoder(name, size, weights=str(tmp_path / "weights.pt")).eval()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, indices=4, output_fmt="NCHW", intermediates_only=True)
        for a, b in zip(encoder(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # timm's own, when it resizes biases
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
def test_weights_of_another_input_size_are_resized_as_timm_does(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    encoder = load_pyramid_encoder(name, 96, weights=str(tmp_path / "weights.pt"))
    state = encoder.model.state_dict()
    bias = "blocks.0.attn.relative_position_bias_table"
    assert state[f"layers_3.{bias}"].shape == (25, 24)  # 3 x 3 places instead of a window of 7 x 7
    assert torch.equal(state[f"layers_0.{bias}"], whole.state_dict()[f"layers.0.{bias}"])


def test_a_local_folder_brings_weights_and_arguments(tmp_path):
    torch.manual_seed(0)
    arguments = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    saved = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **arguments).eval()
    timm.models.save_for_hf(saved, tmp_path / "swin", model_args=arguments)
    encoder = load_pyramid_encoder(str(tmp_path / "swin"), 224).eval()
    assert encoder.channels == (24, 48, 96, 192)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = saved.forward_intermediates(x, indices=4, output_fmt="NCHW", intermediates_only=True)
        for a, b in zip(encoder(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    again = PyramidEncoder.from_spec(ImageEncoderSpec.from_json(encoder.spec.to_json()))
    again.load_state_dict(encoder.state_dict())
    whole = load_image_encoder(str(tmp_path / "swin"), 224)
    assert type(whole).from_spec(whole.spec).dim == whole.dim == 192


def test_all_weights_get_gradients():
    encoder = load_pyramid_encoder("swin_tiny_patch4_window7_224", 64, weights="random")
    sum(m.square().mean() for m in encoder(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_what_has_no_such_pyramid_is_an_error():
    with pytest.raises(ValueError, match=r"'test_resnet' gives no pyramid of 9 scales .* give another --image-encoder"):
        load_pyramid_encoder("test_resnet", 96, weights="random", scales=9)
    with pytest.raises(ValueError, match="scales must be at least 1, got 0"):
        load_pyramid_encoder("test_resnet", 96, weights="random", scales=0)
    with pytest.raises(ValueError, match=r"cannot be used at 4 x 4 pixels .* give another --image-size"):
        load_pyramid_encoder("test_convnext", 4, weights="random")


def test_maps_that_are_not_what_is_announced_are_an_error():
    encoder = load_pyramid_encoder("test_mambaout", 96, weights="random")
    encoder.model.output_fmt = "NCHW"
    with pytest.raises(ValueError, match=r"gives maps of the shapes \(1, 24, 24, 16\).* announces \(16, 32, 48, 64\)"):
        encoder(torch.zeros(1, 3, 96, 96))


def test_unknown_names_and_weights_are_errors():
    with pytest.raises(ValueError, match="image encoder 'no_such_model' is no timm model and no local folder"):
        load_pyramid_encoder("no_such_model", 64)
    with pytest.raises(ValueError, match='weights must be "hub", "random" or an existing file'):
        load_pyramid_encoder("test_resnet", 64, weights="absent.pt")
    with pytest.raises(RuntimeError, match=r"'test_resnet' could not be loaded: .*--image-weights random"):
        load_pyramid_encoder("test_resnet", 64)


@pytest.mark.parametrize("load", [load_image_encoder, load_pyramid_encoder])
def test_a_file_that_does_not_fit_is_an_error_that_names_weights(load, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(ValueError, match=r"weights.pt does not hold the weights of test_convnext: \d+ missing \(stem"):
        load("test_convnext", 96, weights=str(file))
    with pytest.raises(
        ValueError, match=r"weights of swin_tiny.*\d+ unexpected \(conv1\..*, \.\.\.\)\. Give --image-e"
    ):
        load("swin_tiny_patch4_window7_224", 224, weights=str(file))
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight"] = torch.zeros(1, 3, 3, 3)
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"holds weights of another test_resnet: size mismatch for conv1"):
        load("test_resnet", 96, weights=str(file))
    file.write_text("no weights")
    with pytest.raises(ValueError, match=r"weights.pt cannot be read as a file of weights: "):
        load("test_resnet", 96, weights=str(file))
