"""Encoders from local folders, and one clear error where a hub cannot be reached."""

import json

import pytest
import timm
import torch

from recipes.shared.encoders.hub import loading
from recipes.shared.encoders.image import ImageEncoder, ImageEncoderSpec, load_image_encoder
from recipes.shared.encoders.text import TextEncoder, load_text_encoder

TEXTS = ["fever and cough", "cough and pain", "fever and pain"]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """As on a machine that cannot reach a hub: clients answer at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def saved_vit(tmp_path):
    """A small timm checkpoint, saved as timm saves one for a hub."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64)
    timm.models.save_for_hf(model, tmp_path / "vit", model_args={"img_size": 64})
    return tmp_path / "vit", model.eval()


def test_an_image_encoder_loads_its_weights_from_a_local_folder(saved_vit):
    folder, saved = saved_vit
    encoder = load_image_encoder(str(folder), 64).eval()
    x = torch.randn(2, 3, 64, 64)
    tokens = encoder(x)
    expected = saved.forward_features(x)
    assert torch.allclose(tokens.patches, expected[:, 1:], atol=1e-5)
    assert torch.allclose(tokens.summary, expected[:, 0], atol=1e-5)
    assert tokens.grid == (4, 4)


def test_an_image_encoder_loads_a_state_dict_from_a_file(tmp_path):
    torch.manual_seed(0)
    saved = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    encoder = load_image_encoder("test_resnet", 64, weights=str(tmp_path / "weights.pt"), output_stride=16)
    for name, value in saved.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], value)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_patches_keep_their_places_in_every_kind_of_architecture(name):
    """A change in one corner of the image moves the tokens of that corner most."""
    torch.manual_seed(0)
    encoder = load_image_encoder(name, 224 if "swin" in name else 128, weights="random").eval()
    size = encoder.spec.size
    x = torch.randn(1, 3, size, size)
    y = x.clone()
    y[..., -size // 6 :, : size // 6] += 3.0  # bottom left
    with torch.no_grad():
        a, b = encoder(x), encoder(y)
    assert a.patches.shape[-1] == encoder.dim
    assert a.patches.shape[1] == a.grid[0] * a.grid[1]
    change = (a.patches - b.patches).norm(dim=-1).view(a.grid)
    row, column = divmod(int(change.argmax()), a.grid[1])
    assert row >= a.grid[0] / 2
    assert column < a.grid[1] / 2


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050", "test_mambaout", "densenet121", "test_resnet"])
def test_a_stride_may_be_requested_of_any_architecture(name):
    encoder = load_image_encoder(name, 96, weights="random", output_stride=16)
    assert encoder.grid == ((6, 6) if name in ("test_vit", "test_resnet") else (3, 3))
    assert ("output_stride" in encoder.spec.options) == (name == "test_resnet")
    assert ImageEncoder.from_spec(encoder.spec).grid == encoder.grid


def test_what_cannot_encode_the_images_is_an_error():
    with pytest.raises(ValueError, match=r"'test_vit' cannot be used at 8 x 8 pixels .* give another --image-size"):
        load_image_encoder("test_vit", 8, weights="random")
    with pytest.raises(ValueError, match=r"'coat_tiny' cannot be used .*it gives a list instead of one map"):
        load_image_encoder("coat_tiny", 96, weights="random")


def test_an_encoder_is_built_again_from_its_spec():
    encoder = load_image_encoder("test_vit", 96, weights="random")
    again = ImageEncoder.from_spec(ImageEncoderSpec.from_json(encoder.spec.to_json()))
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(encoder.eval()(x).patches, again.eval()(x).patches)


def test_an_unreachable_hub_is_one_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"image encoder 'test_vit' could not be loaded: .*--image-encoder a local"):
        load_image_encoder("test_vit", 160)
    with pytest.raises(RuntimeError, match=r"text encoder 'no/such' could not be loaded: .*--text-encoder a local"):
        load_text_encoder("no/such")


def test_unknown_names_and_weights_are_errors():
    with pytest.raises(ValueError, match="image encoder 'no_such_model' is no timm model and no local folder"):
        load_image_encoder("no_such_model", 64)
    with pytest.raises(ValueError, match='weights must be "hub", "random" or an existing file'):
        load_image_encoder("test_vit", 64, weights="absent.pt")
    with pytest.raises(ValueError, match='weights of a text encoder must be "hub" or "random", got \'none\''):
        load_text_encoder("tiny", weights="none")


def test_other_errors_pass_through():
    with pytest.raises(KeyError), loading("x", "y"):
        raise KeyError("a mistake of ours")


def test_a_text_encoder_loads_from_a_local_folder(tmp_path):
    tiny = load_text_encoder("tiny", texts=TEXTS).eval()
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = load_text_encoder(str(tmp_path)).eval()
    ids = torch.tensor([again.tokenizer("cough and fever")["input_ids"]])
    assert ids.tolist() == [tiny.tokenizer("cough and fever")["input_ids"]]
    mask = torch.ones_like(ids)
    assert torch.allclose(tiny(ids, mask), again(ids, mask), atol=1e-6)
    fresh = load_text_encoder(str(tmp_path), weights="random").eval()
    assert not torch.allclose(tiny(ids, mask), fresh(ids, mask), atol=1e-3)


def test_the_tiny_vocabulary_is_that_of_the_texts():
    tokenizer = load_text_encoder("tiny", texts=TEXTS).tokenizer
    words = tokenizer.convert_ids_to_tokens(tokenizer("Fever and migraine")["input_ids"])
    assert words == ["fever", "and", "[UNK]"]


def test_a_saved_architecture_takes_the_weights_again(tmp_path):
    tiny = load_text_encoder("tiny", texts=TEXTS).eval()
    tiny.save(tmp_path)
    again = TextEncoder.from_saved(tmp_path).eval()
    again.load_state_dict(tiny.state_dict())
    ids = torch.tensor([tiny.tokenizer("fever")["input_ids"]])
    assert torch.equal(tiny(ids, torch.ones_like(ids)), again(ids, torch.ones_like(ids)))


@pytest.mark.slow
def test_biogpt_and_its_own_tokenizer_load_from_a_local_folder(tmp_path):
    """The paper's text encoder, as small as it can be: same classes, same files."""
    from transformers import BioGptConfig, BioGptModel, BioGptTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "c", "o", "u", "g", "h</w>", "f", "e", "v", "r</w>", "cough</w>"]
    merges = ["c o", "co u", "cou g", "coug h</w>"]
    pieces += ["co", "cou", "coug"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge} 1\n" for merge in merges))
    tokenizer = BioGptTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    folder = tmp_path / "biogpt"
    tokenizer.save_pretrained(folder)
    config = BioGptConfig(
        vocab_size=len(pieces), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    saved = BioGptModel(config).eval()
    saved.save_pretrained(folder)
    encoder = load_text_encoder(str(folder)).eval()
    ids = torch.tensor([encoder.tokenizer("cough fever")["input_ids"]])
    assert pieces.index("cough</w>") in ids[0].tolist()
    mask = torch.ones_like(ids)
    expected = saved(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(encoder(ids, mask), expected, atol=1e-6)
    assert encoder.dim == 8
