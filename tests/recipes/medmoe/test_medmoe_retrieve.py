import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recipes.data.pairs import PairStream
from recipes.medmoe import retrieve
from recipes.medmoe.inference.local_scoring import routed_local_scores
from recipes.medmoe.inference.run import Session
from recipes.shared.runs import read_json
from recipes.shared.scores.retrieval import unique_texts


@pytest.fixture
def run(pretrained_run, tmp_path):
    return shutil.copytree(pretrained_run, tmp_path / "run")


def test_a_call_adds_its_section(run, capsys):
    result = retrieve.main(run, split="val")
    assert "image to text: R@1 " in capsys.readouterr().out
    assert read_json(run / "metrics.json")["retrieval"] == result
    assert (result["split"], result["score"], result["route_on"], result["images"]) == ("val", "global", "image", 24)
    assert result["image_to_text"]["candidates"] == result["texts"] == result["text_to_image"]["queries"]
    assert result["image_to_text"]["queries"] == result["text_to_image"]["candidates"] == 24


def test_recall_is_that_of_the_similarities(pretrained_run):
    session = Session.open(pretrained_run)
    split = session.source().test
    texts, index = unique_texts(split.texts)
    image = torch.cat([image.embedding for _, image in session.image_batches(split)])
    cosines = (image @ session.texts(texts).embedding.T).numpy()
    local = np.concatenate(
        [routed_local_scores(session, image, session.texts(texts)).numpy() for _, image in session.image_batches(split)]
    )
    both = (cosines - cosines.mean()) / cosines.std() + (local - local.mean()) / local.std()
    for score, scores in (("global", cosines), ("global+local", both)):
        result = retrieve.retrieve(session, split, score=score)
        ranks = (scores >= scores[np.arange(len(index)), index][:, None]).sum(1)
        assert result["image_to_text"]["recall"] == {str(k): pytest.approx((ranks <= k).mean()) for k in (1, 5, 10)}


def test_equal_reports_are_one_candidate_and_any_of_their_images_a_hit(pretrained_run):
    session = Session.open(pretrained_run)
    split = session.source().val
    split.texts = ["Clear lungs.", "clear  lungs."] * 12
    result = retrieve.retrieve(session, split)
    assert result["texts"] == 1
    assert result["text_to_image"]["recall"]["1"] == result["image_to_text"]["recall"]["1"] == 1


def test_what_cannot_be_ranked_is_refused(run, monkeypatch):
    class Stream(PairStream):
        pass

    session = Session.open(run)
    source = session.source()
    monkeypatch.setattr(Session, "source", lambda self: replace(source, train=Stream()))
    with pytest.raises(ValueError, match="the train split of this run is a stream, which cannot be ranked"):
        retrieve.main(run, split="train")
    lacking = SimpleNamespace(ids=["a", "b"], texts=["x", None])
    with pytest.raises(ValueError, match="pairs must all have a text, but 1 have none, such as 'b'"):
        retrieve.retrieve(session, lacking)
