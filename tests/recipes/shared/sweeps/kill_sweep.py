"""Kills a sweep at random moments, then lets it finish: its tables must be those of one that was never killed.

``python -m tests.recipes.shared.sweeps.kill_sweep KILLS SECONDS FOLDER TABLE... -- COMMAND...`` starts the command
KILLS times, ends it each time by SIGKILL up to SECONDS after its first cell began, runs it to its end, and prints a
checksum of each table in FOLDER. Run it with 0 KILLS and another FOLDER for the tables to compare with.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

from recipes.shared.sweeps.provenance import file_checksum


def begun(folder: str) -> dict[Path, int]:
    """When each cell of the sweep was last begun."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("settings.json")}


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    kills, seconds, folder, *tables = arguments[:split]
    command = arguments[split + 1 :]
    moments = random.Random(0)
    for number in range(int(kills)):
        before = begun(folder)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and begun(folder) == before:
            time.sleep(0.02)
        after = moments.uniform(0, float(seconds))
        try:
            process.wait(timeout=after)
            print(f"{number + 1}: ended by itself within {after:.1f} s")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            finished = len(list(Path(folder).rglob("record.json")))
            print(f"{number + 1}: killed after {after:.1f} s with {finished} cells finished", flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    print(f"last run: {time.monotonic() - started:.1f} s")
    for table in tables:
        print(table, file_checksum(Path(folder) / table))


if __name__ == "__main__":
    main(sys.argv[1:])
