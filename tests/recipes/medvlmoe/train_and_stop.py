"""Trains as ``python -m recipes.medvlmoe train`` does, and stops all processes when the epoch STOP_AT begins."""

import os
import sys

from recipes.medvlmoe import train
from recipes.medvlmoe.__main__ import parse_train

if __name__ == "__main__":
    one_epoch = train.train_epoch

    def until(*args, epoch, **kwargs):
        if epoch == int(os.environ["STOP_AT"]):
            sys.exit(0)
        return one_epoch(*args, epoch=epoch, **kwargs)

    train.train_epoch = until
    train.main(parse_train(sys.argv[1:]))
