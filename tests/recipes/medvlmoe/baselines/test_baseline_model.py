"""The parts of a model of pairs: prompts, zero-shot logits, words, masked words, frozen layers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.medvlmoe.baselines.config import ContrastConfig
from recipes.medvlmoe.baselines.late_fusion import LateFusion
from recipes.medvlmoe.baselines.model import PairModel, freeze_layers, zero_shot_logits
from recipes.medvlmoe.baselines.presets import tiny_edition
from recipes.medvlmoe.baselines.prompts import class_prompts, texts_of_labels
from recipes.medvlmoe.baselines.words import IGNORED, MaskedWords, WordPieces
from recipes.shared.encoders.image import load_image_encoder
from recipes.shared.encoders.text import load_text_encoder
from recipes.shared.tasks import TaskLoss
from tests.recipes.medvlmoe.baselines.small import small_baseline

CLASSES = ("edema", "effusion")
TEXTS = ["edema is seen", "no effusion is seen", "no edema and an effusion"]
REPORT = ContrastConfig(prompt="a radiograph of {}")


def test_a_text_of_labels_states_every_known_one():
    labels = np.array([[1, 0], [0, 0], [1, np.nan], [np.nan, np.nan]], np.float32)
    assert texts_of_labels(labels, CLASSES, "multi-label", REPORT) == [
        "a radiograph of edema, no effusion",
        "a radiograph of no edema, no effusion",
        "a radiograph of edema",
        None,
    ]
    one_hot = np.array([[0, 1], [np.nan, np.nan]], np.float32)
    assert texts_of_labels(one_hot, CLASSES, "multi-class", REPORT) == ["a radiograph of effusion", None]


def test_prompts_name_a_finding_and_deny_it():
    prompts = class_prompts(CLASSES, "multi-label", ContrastConfig(prompt="{}"))
    assert prompts == ["edema", "effusion", "no edema", "no effusion"]
    assert class_prompts(CLASSES, "binary-class", REPORT) == ["a radiograph of edema", "a radiograph of effusion"]


def test_zero_shot_probabilities_are_softmaxes_over_prompts():
    cosines = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([cosines[:, :2], cosines[:, 2:]])
    torch.testing.assert_close(
        TaskLoss("multi-label").probs(zero_shot_logits(cosines, "multi-label")), pairs.softmax(0)[0]
    )
    torch.testing.assert_close(
        TaskLoss("multi-class").probs(zero_shot_logits(cosines, "multi-class")), cosines.softmax(1)
    )
    graded = zero_shot_logits(cosines, "ordinal-regression")
    assert graded.shape == (5, 3)
    torch.testing.assert_close(TaskLoss("ordinal-regression").probs(graded), cosines.softmax(1))


class Pieces:
    """A tokenizer with as much as the words need."""

    vocabulary = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "pneumo", "##thorax", "left", "[MASK]")
    all_special_ids, unk_token_id, mask_token_id = (0, 1, 2, 3, 7), 3, 7

    def __len__(self):
        return len(self.vocabulary)

    def get_vocab(self):
        return {piece: place for place, piece in enumerate(self.vocabulary)}


def test_pieces_that_go_on_belong_to_the_word_before():
    ids = torch.tensor([[1, 4, 5, 6, 3, 2, 0], [1, 6, 2, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0]]).bool()
    words = WordPieces(Pieces()).word_ids(ids, mask)
    assert words.tolist() == [[-1, 0, 0, 1, 2, -1, -1], [-1, 0, -1, -1, -1, -1, -1]]


def test_masked_words_are_predicted_by_the_embeddings():
    torch.manual_seed(0)
    head = MaskedWords(6, Pieces())
    ids = torch.full((8, 50), 4)
    maskable = torch.ones_like(ids).bool()
    maskable[:, :10] = False
    masked, targets = head.mask(ids, maskable)
    chosen = targets != IGNORED
    assert not chosen[:, :10].any()
    assert 0.08 < chosen[:, 10:].float().mean() < 0.22
    assert (masked[chosen] == 7).all()
    assert (masked[~chosen] == 4).all()
    states, embeddings = torch.randn(8, 50, 6), torch.randn(9, 6)  # a vocabulary may be padded
    logits = head.transform(states)[chosen] @ embeddings[:8].T + head.bias
    torch.testing.assert_close(head(states, embeddings, targets), F.cross_entropy(logits, targets[chosen]))
    assert head(states, embeddings, torch.full_like(targets, IGNORED)) == 0


def pair_model(name, **changes):
    config = small_baseline(name, None, contrast=changes).model
    torch.manual_seed(0)
    image = load_image_encoder(config.image_encoder, config.image_size, weights="random", output_stride=16)
    text = load_text_encoder(config.text_encoder, texts=TEXTS * 2)
    return PairModel(config, image, text, CLASSES, "multi-label").eval()


@torch.no_grad()
def test_a_zero_shot_diagnosis_compares_the_image_with_its_prompts():
    model = pair_model("chexzero")
    images = torch.randn(3, 3, 64, 64)
    logits = model(images, torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1).bool()).logits
    image = F.normalize(model.image_projection(model.image_encoder(images).summary), dim=1)
    scale = 1 / 0.07
    for c, name in enumerate(CLASSES):
        scores = []
        for text in (name, f"no {name}"):
            ids = torch.tensor([model.text_encoder.tokenizer(text)["input_ids"]])
            states = model.text_encoder(ids, torch.ones_like(ids))[:, -1]
            scores.append(scale * (image @ F.normalize(model.text_projection(states), dim=1).T)[:, 0])
        torch.testing.assert_close(logits[:, c], scores[0] - scores[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="image_mask must be None for a zero-shot classifier"):
        model(images, None, None, torch.ones(3).bool())


def test_gloria_sums_the_last_layers_and_compares_words_with_regions():
    model = pair_model("gloria")
    encoded = model.text_encoder.tokenizer(TEXTS[0])
    ids = torch.tensor([encoded["input_ids"]])
    features = model.pairs(torch.randn(1, 3, 64, 64), ids, torch.ones_like(ids).bool())
    hidden = model.text_encoder.model(ids, output_hidden_states=True).hidden_states
    mean = (hidden[-2] + hidden[-1]) / 2
    torch.testing.assert_close(features.words[0, :3], model.word_projection(mean[0, 1:4]))
    assert features.word_mask.sum() == 3  # the frame of the text is no word
    assert features.regions.shape == (1, 16, 32)
    assert features.logit_scale == 10.0


def test_the_image_of_biovil_is_the_mean_of_its_regions():
    model = pair_model("biovil").train()
    ids = torch.tensor([model.text_encoder.tokenizer(TEXTS[0])["input_ids"]] * 4)
    features = model.pairs(torch.randn(4, 3, 64, 64), ids, torch.ones_like(ids).bool())
    torch.testing.assert_close(features.image, features.regions.mean(1))
    features.masked_loss.backward()
    assert model.text_encoder.model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert pair_model("biovil", masked_weight=0.0).masked_words is None


def test_first_layers_of_a_bert_are_frozen_and_others_refused():
    bert = load_text_encoder("tiny-bert", texts=TEXTS * 2)
    freeze_layers(bert, 1)
    trained = {name for name, weight in bert.model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in bert.model.named_parameters() if name.startswith("encoder.layer.1")}
    with pytest.raises(ValueError, match=r"\(--frozen-text-layers\) is 3, but the text encoder BertModel has 2 layers"):
        freeze_layers(bert, 3)
    with pytest.raises(ValueError, match=r"BioGptModel has no layers of a BERT"):
        freeze_layers(load_text_encoder("tiny", texts=TEXTS), 1)


def test_layers_that_a_text_encoder_lacks_are_refused():
    bert = load_text_encoder("tiny-bert", texts=TEXTS)
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"text encoder of 2 layers lie between -3 and 2, got 1, 5"):
        bert(ids, ids, (1, 5))


@torch.no_grad()
def test_late_fusion_replaces_what_a_study_lacks():
    config = small_baseline("biobert-vqa", None).model
    image = load_image_encoder(config.image_encoder, config.image_size, weights="random", output_stride=16)
    model = LateFusion(config, image, load_text_encoder("tiny-bert", texts=TEXTS * 2), 2, "multi-label").eval()
    ids = torch.tensor([model.text_encoder.tokenizer(text)["input_ids"][:5] for text in TEXTS])
    mask = torch.ones_like(ids).bool()
    mask[1] = False
    images = torch.randn(3, 3, 64, 64)
    logits = model(images, ids, mask, torch.tensor([True, True, False])).logits
    seen = model.image_projection(model.image_encoder(images).summary)
    read = model.text_projection(model.text_encoder(ids, torch.ones_like(ids))[:, 0])
    both = torch.cat([seen, read], 1)
    both[1, 32:], both[2, :32] = model.null_text, model.null_image
    torch.testing.assert_close(logits, model.head(model.mixer(both)))
    nothing = LateFusion(config, image, None, 2, "multi-label").eval()
    assert nothing(images, ids[:, :0], mask[:, :0]).logits.shape == (3, 2)


def test_models_of_pairs_are_saved_and_loaded_as_folders(tmp_path):
    model = pair_model("medclip")
    model.save_pretrained(tmp_path / "model")
    again = PairModel.from_pretrained(tmp_path / "model").eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(images, None, None).logits, model(images, None, None).logits)
    assert json.loads((tmp_path / "model" / "architecture.json").read_text())["classes"] == list(CLASSES)


def test_a_trained_projection_of_an_encoder_is_kept():
    config = tiny_edition("clip-med").model
    image = load_image_encoder(config.image_encoder, 64, weights="random")
    text = load_text_encoder("tiny", texts=TEXTS)
    image.projection, text.projection = torch.randn(image.dim, config.dim), torch.randn(text.dim, config.dim + 1)
    model = PairModel(config, image, text, CLASSES, "multi-label")
    torch.testing.assert_close(model.image_projection.weight, image.projection.T)
    assert model.text_projection.weight.shape == (config.dim, text.dim)  # another width: drawn anew
