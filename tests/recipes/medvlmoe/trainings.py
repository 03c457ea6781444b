"""Trains as ``python -m recipes.medvlmoe train`` does, several times in the processes that torchrun started."""

import json
import sys
from pathlib import Path

from recipes.medvlmoe import train
from recipes.medvlmoe.__main__ import parse_train


class StoppedError(Exception):
    """All processes stop where an epoch begins."""


def train_until(arguments, stop_at):
    """Trains until an epoch begins, as a run that is stopped there; ``None`` trains to the end."""
    one_epoch = train.train_epoch

    def until(*args, epoch, **kwargs):
        if epoch == stop_at:
            raise StoppedError
        return one_epoch(*args, epoch=epoch, **kwargs)

    train.train_epoch = until
    try:
        train.main(parse_train(arguments))
    except StoppedError:
        pass
    finally:
        train.train_epoch = one_epoch


def without_dropout(new_model):
    """Returns ``new_model`` for models whose text encoder has no dropout, which every process draws for itself."""

    def make(*arguments):
        model = new_model(*arguments)
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        return model

    return make


if __name__ == "__main__":
    train.new_model = without_dropout(train.new_model)
    for arguments, stop_at in json.loads(Path(sys.argv[1]).read_text()):
        train_until(arguments, stop_at)
