"""Bidirectional text encoders: the tiny one, and checkpoints in the layout of Bio_ClinicalBERT."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from recipes.shared.encoders.text import TextEncoder, load_text_encoder

TEXTS = ["fever and cough", "cough and pain", "fever and pain", "No fever, no cough."]


def states(encoder, text):
    ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return encoder.eval()(ids, torch.ones_like(ids))


@pytest.mark.parametrize(("name", "both_ways"), [("tiny", False), ("tiny-bert", True)])
def test_words_of_tiny_bert_see_the_words_after_them(name, both_ways):
    torch.manual_seed(0)
    encoder = load_text_encoder(name, texts=TEXTS)
    first = 1 if both_ways else 0  # after [BOS]
    a, b = states(encoder, "fever and cough")[0, first], states(encoder, "fever and pain")[0, first]
    assert torch.allclose(a, b, atol=1e-6) != both_ways


def test_tiny_bert_knows_the_word_of_each_token_and_frames_every_text():
    tokenizer = load_text_encoder("tiny-bert", texts=TEXTS).tokenizer
    encoded = tokenizer("Fever, migraine")
    words = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert words == ["[BOS]", "fever", "[UNK]", "[UNK]", "[EOS]"]
    assert encoded.word_ids() == [None, 0, 1, 2, None]
    cut = tokenizer("fever and cough and pain", truncation=True, max_length=4)
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"]) == ["[BOS]", "fever", "and", "[EOS]"]
    assert len(tokenizer("")["input_ids"]) == 2


def test_padding_changes_nothing():
    encoder = load_text_encoder("tiny-bert", texts=TEXTS)
    batch = encoder.tokenizer(["fever", "fever and cough and pain"], padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = encoder.eval()(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(padded[:1, :3], states(encoder, "fever"), atol=1e-6)


def test_tiny_bert_is_built_again_from_what_it_saved(tmp_path):
    encoder = load_text_encoder("tiny-bert", texts=TEXTS)
    encoder.save(tmp_path)
    again = TextEncoder.from_saved(tmp_path)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(states(again, "No fever"), states(encoder, "No fever"))
    assert again.tokenizer("no pain").word_ids() == encoder.tokenizer("no pain").word_ids() == [None, 0, 1, None]


def test_every_weight_of_tiny_bert_is_used():
    encoder = load_text_encoder("tiny-bert", texts=TEXTS)
    ids = torch.tensor([encoder.tokenizer("fever and cough")["input_ids"]])
    encoder(ids, torch.ones_like(ids)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_checkpoint_like_bio_clinicalbert_loads_from_a_folder(tmp_path):
    """Its files: a model saved with pretraining heads, and a vocab.txt without a tokenizer.json."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "card", "##io", "##megaly", "no", "edema", "."]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    saved = BertForPreTraining(config).eval()
    saved.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    encoder = load_text_encoder(str(tmp_path))
    encoded = encoder.tokenizer("no cardiomegaly.")
    assert encoder.tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]", "no", "card", "##io", "##megaly", ".", "[SEP]",
    ]  # fmt: skip
    assert encoded.word_ids() == [None, 0, 1, 1, 1, 2, None]
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        expected = saved.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.allclose(states(encoder, "no cardiomegaly."), expected, atol=1e-6)
    fresh = load_text_encoder(str(tmp_path), weights="random")
    assert not torch.allclose(states(fresh, "no cardiomegaly."), expected, atol=1e-2)
