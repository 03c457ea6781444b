"""Pretrains as ``python -m recipes.medmoe pretrain`` does, several times in the processes that torchrun started.

With a number of losses behind the options the process is killed, as by ``kill -9``, when it computes the next one.
"""

import json
import os
import signal
import sys
from pathlib import Path

from recipes.medmoe.__main__ import parse_pretrain
from recipes.medmoe.pretrain import stage


def kill_after(losses):
    """Makes the process end itself without any farewell."""
    original, calls = stage.pair_losses, 0

    def dying(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls > losses:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    stage.pair_losses = dying


if __name__ == "__main__":
    for options, killed_after in json.loads(Path(sys.argv[1]).read_text()):
        if killed_after is not None:
            kill_after(killed_after)
        stage.main(parse_pretrain(options))
