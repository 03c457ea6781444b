"""The command line of a recipe: one word for the stage, then the stage's own options."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import tyro

DEFAULT_PRESET = "tiny"

_INSTALL = '. The recipes need: pip install "moekit[recipes]"'


def run_stage(
    module: str,
    stages: Mapping[str, Callable[[list[str]], None]],
    about: Mapping[str, str],
    arguments: list[str],
) -> None:
    """Runs the stage that the first argument names.

    A caller's mistake ends as one line; ``--traceback``, which every stage takes, shows where it arose.

    Args:
        module: The recipe, as in ``python -m MODULE``.
        stages: What runs each stage, given the other arguments.
        about: One line on each stage.
        arguments: The command line.
    """
    stage, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if stage not in stages:
        width = max(len(name) for name in stages)
        print(f"usage: python -m {module} STAGE [options]\n\nStages (each has --help):")
        print("\n".join(f"  {name:{width}} {line}" for name, line in about.items()))
        sys.exit(0 if stage in ("-h", "--help") else 2)
    try:
        stages[stage]([argument for argument in rest if argument != "--traceback"])
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if "--traceback" in rest:
            raise
        absent = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        sys.exit(f"{type(error).__name__}: {error}{_INSTALL if absent else ''}")


def parse_preset(
    kind: type[Any], presets: Mapping[str, Callable[[], Any]], arguments: list[str], *, prog: str, about: str
) -> Any:
    """Parses the settings of a stage: those of the preset that ``--preset`` names, changed by the other arguments.

    Args:
        kind: The dataclass of the settings.
        presets: Makes the settings of each preset.
        arguments: The command line behind the stage's name.
        prog: What to call the command in its help.
        about: One line on the stage.

    Raises:
        ValueError: If there is no such preset.
    """
    name = DEFAULT_PRESET
    for place, argument in enumerate(arguments):
        if argument.startswith("--preset"):
            name = argument.partition("=")[2] or (arguments[place + 1] if place + 1 < len(arguments) else "")
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {name!r}.")
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(kind),
        default=presets[name](),
        args=arguments,
        prog=prog,
        description=f"{about} Defaults below are those of the preset {name!r}; --preset chooses another.",
    )
