"""Releases whose code installs nowhere: files with their published names and shapes, written here at small sizes.

The forward pass of each is written again, plainly and from its published code (cited in the adapters), and must agree.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recipes.medmoe.models.choice import ModelChoice
from recipes.medmoe.models.load import load_adapter
from tests.recipes.medmoe.models.layouts import (
    COMMON,
    DIM,
    adapter_of,
    check_images,
    check_texts,
    close,
    lively,
    small_resnet,
    three_layers,
    tokens_of,
    under,
    unit,
)
from tests.recipes.medmoe.models.saved import TEXTS, picture, save_text_tower, small_bert, word_pieces


class Settings:
    """Pickled beside the weights; its state must never be set."""

    def __init__(self):
        self.temp = 4.0

    def __setstate__(self, state):
        raise AssertionError("the file's own objects were built")


@torch.no_grad()
def test_gloria(tmp_path, tower):
    resnet, bert = small_resnet(), small_bert()
    glob, local = nn.Linear(2048, DIM), nn.Conv2d(1024, DIM, 1, bias=False)
    state = under("gloria.img_encoder.model.", resnet) | under("gloria.img_encoder.global_embedder.", glob)
    state |= under("gloria.img_encoder.local_embedder.", local) | under("gloria.text_encoder.model.", bert)
    state["gloria.text_encoder.model.embeddings.position_ids"] = torch.arange(512)[None]
    path = tmp_path / "chexpert_resnet50.ckpt"
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": Settings()}, path)
    with pytest.raises(AssertionError, match="objects were built"):
        torch.load(path, weights_only=False)
    adapter = adapter_of("gloria", path, tower)

    def stages(images):
        large = F.interpolate(images, (299, 299), mode="bilinear", align_corners=True)
        third = nn.Sequential(*list(resnet.children())[:7])(large)
        return third, resnet.layer4(third).mean((2, 3))

    images, features = check_images(adapter, lambda images: glob(stages(images)[1]), 224, 19)
    close(features.maps[0], local(stages(images)[0]))
    # aggregate_tokens of text_model.py: pieces summed into words up to [SEP], zeros to 97 places, mean over them all.
    # The tokens of process_text: words alone, in lower case; sentences of one word are left out.
    texts = ["left pleural effusion no pneumothorax", "an x ray of the chest", "pleural effusion"]
    tokens = tokens_of(texts, padding="max_length", max_length=97)
    hidden = torch.stack(bert(**dict(tokens.items()), output_hidden_states=True).hidden_states[-4:], 1)
    places, named = torch.zeros(3, 4, 97, DIM), word_pieces()
    for row, ids in enumerate(tokens.input_ids.tolist()):
        at = -1
        for place, piece in enumerate(named.convert_ids_to_tokens(ids)):
            at += 0 if piece.startswith("##") else 1
            places[row, :, at] += hidden[row, :, place]
            if piece == "[SEP]":
                break
    given = ["1. Left pleural effusion, no pneumothorax. Chest.", "An x-ray\nof the chest", "Pleural effusion."]
    features = adapter.encode_texts(adapter.tokenize(given))
    close(features.embedding, unit(places.mean(2).sum(1)))
    close(features.words[0, :5], places[0].sum(0)[1:6])  # behind [CLS]
    assert adapter.words(given[0]) == texts[0].split()
    assert (adapter.scale, adapter.attention) == (10.0, (4.0, 5.0))


@torch.no_grad()
def test_medclip_with_a_resnet(tmp_path, tower):
    head, bert, text_head = nn.Linear(2048, COMMON, bias=False), small_bert(), nn.Linear(DIM, COMMON, bias=False)
    resnet = small_resnet(head)
    state = under("vision_model.model.", resnet) | under("text_model.model.", bert)
    state |= under("text_model.projection_head.", text_head) | {"logit_scale": torch.tensor(9.0)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    adapter = adapter_of("medclip", tmp_path, tower)
    check_images(adapter, resnet, 224, 7)
    check_texts(adapter, text_head(three_layers(bert, tokens_of(TEXTS))))
    assert adapter.scale == pytest.approx(math.exp(4.6052))


@torch.no_grad()
def test_medclip_with_a_swin(tmp_path, tower):
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(3)
    config = SwinConfig(image_size=224, patch_size=4, embed_dim=24, depths=[1, 2], num_heads=[2, 4], window_size=7)
    swin, bert = SwinModel(config).eval(), small_bert()
    head, text_head = nn.Linear(48, COMMON, bias=False), nn.Linear(DIM, COMMON, bias=False)
    state = under("vision_model.model.", swin) | under("vision_model.projection_head.", head)
    state |= under("text_model.model.", bert) | under("text_model.projection_head.", text_head)
    torch.save(state | {"logit_scale": torch.tensor(2.0)}, tmp_path / "pytorch_model.bin")
    adapter = adapter_of("medclip", tmp_path / "pytorch_model.bin", tower)
    check_images(adapter, lambda images: head(swin(images).pooler_output), 224, 28)
    check_texts(adapter, text_head(three_layers(bert, tokens_of(TEXTS))))
    padded = adapter.encode_texts(adapter.tokenize([TEXTS[2], TEXTS[0]])).embedding[0]
    alone = adapter.encode_texts(adapter.tokenize([TEXTS[2]])).embedding[0]
    assert (padded - alone).abs().max() > 1e-4  # padding is averaged, as published


@torch.no_grad()
def test_keepfit_and_flair(tmp_path, tower):
    resnet, bert = small_resnet(), small_bert()
    head, text_head = nn.Linear(2048, COMMON, bias=False), nn.Linear(DIM, COMMON, bias=False)
    flair = under("vision_model.model.", resnet) | under("text_model.model.", bert)
    flair |= under("vision_model.projection_head_vision.projection.", head)
    flair |= under("text_model.projection_head_text.projection.", text_head)
    flair["logit_scale"] = torch.tensor(1.5)
    keepfit = flair | {f"attention.W_{one}.weight": torch.zeros(COMMON, COMMON) for one in "qkvo"}
    for name, state in (("flair", flair), ("keepfit", keepfit)):
        torch.save(state, tmp_path / f"{name}.pth")
        adapter = adapter_of("keepfit", tmp_path / f"{name}.pth", tower)
        if name == "flair":
            check_images(adapter, lambda images: head(unit(resnet(images))), 512, 16)
        check_texts(adapter, text_head(unit(three_layers(bert, tokens_of(TEXTS)))))
        assert adapter.scale == pytest.approx(math.exp(1.5))
    square = adapter.preprocess.tensor(adapter.preprocess.fit(picture(30, 60)))
    assert square[:, 256:].abs().max() == 0  # padded below
    assert 0 <= square.min() <= square.max() <= 1
    assert square[:, 0].max() > 0


@torch.no_grad()
def test_biovil(tmp_path):
    from transformers import BertForMaskedLM

    resnet = small_resnet(nn.Linear(2048, 10))
    projector = lively(
        nn.Sequential(nn.Conv2d(2048, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
    )
    state = under("encoder.encoder.", resnet) | under("projector.model.", projector)
    path = tmp_path / "biovil_image_resnet50_proj_size_128.pt"
    torch.save(state, path)
    tower = save_text_tower(tmp_path / "cxr-bert", small_bert())
    config = (tower / "config.json").read_text().replace('"model_type": "bert"', '"model_type": "cxr-bert"')
    (tower / "config.json").write_text(config)
    torch.manual_seed(6)
    masked = BertForMaskedLM(small_bert().config).eval()
    dense, layer_norm, last = nn.Linear(DIM, 16), nn.LayerNorm(16, eps=1e-12), nn.Linear(16, 16)
    head = {"dense_to_hidden": dense, "LayerNorm": layer_norm, "dense_to_output": last}
    text_state = dict(masked.state_dict())
    for name, part in head.items():
        text_state |= under(f"cls_projection_head.{name}.", part)
    torch.save(text_state, tower / "pytorch_model.bin")
    adapter = adapter_of("biovil", path, tower)
    trunk = nn.Sequential(*list(resnet.children())[:8])
    check_images(adapter, lambda images: projector(trunk(images)).mean((2, 3)), 480, 15)
    tokens = tokens_of([text.rstrip("!?.") for text in TEXTS])
    first = masked.bert(tokens.input_ids, tokens.attention_mask).last_hidden_state[:, 0]
    check_texts(adapter, last(layer_norm(F.gelu(dense(first)))))
    dim = adapter.preprocess.fit((picture(60, 60) // 8 + 40).astype("uint8"))
    assert dim.max() > 200  # values were stretched to the whole range before they were resized
    with pytest.raises(ValueError, match=r"image tower alone.*--text-tower"):
        load_adapter(ModelChoice(f"biovil:{path}"))
    (tower / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks config.json, or model.safetensors.*--text-tower"):
        adapter_of("biovil", path, tower)


def test_names_that_are_missing_unexpected_or_of_another_shape_are_told(tmp_path, tower):
    head, text_head = nn.Linear(2048, COMMON, bias=False), nn.Linear(DIM, COMMON, bias=False)
    state = under("vision_model.model.", small_resnet(head)) | under("text_model.model.", small_bert())
    state |= under("text_model.projection_head.", text_head) | {"logit_scale": torch.tensor(1.0)}
    del state["vision_model.model.bn1.bias"]
    state["vision_model.model.stray"] = torch.zeros(1)
    state["text_model.model.embeddings.word_embeddings.weight"] = torch.zeros(3, DIM)
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = (
        r"1 missing: vision_model.model.bn1.bias; 1 unexpected: vision_model.model.stray; 1 of another shape: "
        r"text_model.model.embeddings.word_embeddings.weight \(3, 32\) for \(64, 32\)"
    )
    with pytest.raises(ValueError, match=expected):
        adapter_of("medclip", tmp_path, tower)


@pytest.mark.parametrize("kind", ["gloria", "medclip", "keepfit", "biovil", "unimed"])
def test_files_of_something_else_are_refused(tmp_path, tower, kind):
    with pytest.raises(ValueError, match=r"does not exist, expected a file of weights \(--model\)"):
        adapter_of(kind, tmp_path / "absent.pt", tower)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"lacks|holds no"):
        adapter_of(kind, tmp_path / "other.pt", tower)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        adapter_of(kind, tmp_path / "list.pt", tower)
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(ValueError, match="cannot be read as a file of weights"):
        adapter_of(kind, tmp_path / "text.pt", tower)


def test_a_hub_s_text_tower_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    head, text_head = nn.Linear(2048, COMMON, bias=False), nn.Linear(DIM, COMMON, bias=False)
    state = under("vision_model.model.", small_resnet(head)) | under("text_model.model.", small_bert())
    state |= under("text_model.projection_head.", text_head) | {"logit_scale": torch.tensor(1.0)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match=r"Bio_ClinicalBERT could not be loaded.*--text-tower"):
        load_adapter(ModelChoice(f"medclip:{tmp_path}"))


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_biovil_as_hi_ml_saves_it(tmp_path):
    """hi-ml-multimodal is no requirement: where it is installed, it saves both towers and embeds with its own code."""
    pytest.importorskip("health_multimodal.text.model")
    from health_multimodal.image.data.transforms import create_chest_xray_transform_for_inference
    from health_multimodal.image.model.model import ImageModel
    from health_multimodal.text.model.configuration_cxrbert import CXRBertConfig
    from health_multimodal.text.model.modelling_cxrbert import CXRBertModel
    from PIL import Image

    torch.manual_seed(7)
    image = lively(ImageModel("resnet50", 128))
    path = tmp_path / "biovil_image_resnet50_proj_size_128.pt"
    torch.save(image.state_dict(), path)
    assert len(image.state_dict()) == 328
    tower = save_text_tower(tmp_path / "cxr-bert")
    text = CXRBertModel(CXRBertConfig(projection_size=128, **small_bert().config.to_diff_dict())).eval()
    text.save_pretrained(tower)
    adapter = adapter_of("biovil", path, tower)
    check_images(adapter, lambda images: image(images).projected_global_embedding, 480, 15)
    grey = picture(70, 90, colours=False)
    grey = ((grey - grey.min()) / (grey.max() - grey.min()) * 255).astype("uint8")
    expected = create_chest_xray_transform_for_inference(512, 480)(Image.fromarray(grey))
    close(adapter.preprocess.tensor(adapter.preprocess.fit(grey)), expected)
    tokens = tokens_of([text.rstrip("!?.") for text in TEXTS])
    check_texts(adapter, text.get_projected_text_embeddings(tokens.input_ids, tokens.attention_mask))
