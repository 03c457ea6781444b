"""Sweeps: many trained and evaluated runs in one folder, which processes share and a killed one goes on with.

``OUT/runs/CELL`` is a run as any other of its recipe. ``OUT/cells/CELL`` holds what a sweep must know of it: a lock, a
log and, once the cell is finished, its record.
"""

from recipes.shared.sweeps.cells import Cell, Record, SweepFolder
from recipes.shared.sweeps.engine import run_sweep

__all__ = ["Cell", "Record", "SweepFolder", "run_sweep"]
