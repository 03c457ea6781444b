"""The command line: ``python -m recipes.medvlmoe STAGE``, from ``train`` to ``figure3``."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from recipes.medvlmoe.config import Config, DataConfig
from recipes.medvlmoe.presets import PRESETS
from recipes.shared.cli import parse_preset, run_stage
from recipes.shared.outputs import check_file

_ABOUT = {
    "train": "Train a run (or one per seed) into a folder.",
    "evaluate": "Evaluate a trained run: metrics.json, predictions.csv, examples.npz.",
    "external": "Evaluate a trained run on another data set, through a map of labels.",
    "compare": "Compare the test AUROCs of two evaluated runs on the same studies.",
    "predict": "Predict the findings of images of your own with a trained run.",
    "report": "Draw report.html from an evaluated run.",
    "serve": "Serve a page on which to try a trained run.",
    "table1": "Train and compare MedVLMoE and the baselines on several data sets (the paper's Table 1).",
    "table2": "Train and compare the full model and its ablations (Table 2).",
    "figure2": "Draw Table 1 as bars over the data sets (Figure 2).",
    "figure3": "Draw the experts by disease, and test whether they specialise (Figure 3).",
}


def main(arguments: list[str]) -> None:
    """Runs one stage."""
    stages = {
        "train": _train,
        "evaluate": _evaluate,
        "external": _external,
        "compare": _compare,
        "predict": _predict,
        "report": _report,
        "serve": _serve,
        **{name: partial(_table, name) for name in ("table1", "table2", "figure2", "figure3")},
    }
    run_stage("recipes.medvlmoe", stages, _ABOUT, arguments)


def parse_train(arguments: list[str]) -> Config:
    """Parses the settings of ``train``: the preset's, with what the arguments change."""
    return parse_preset(Config, PRESETS, arguments, prog="python -m recipes.medvlmoe train", about=_ABOUT["train"])


def _train(arguments: list[str]) -> None:
    config = parse_train(arguments)
    from recipes.data.arguments import spelled
    from recipes.data.verify import bad_images_named
    from recipes.medvlmoe import train
    from recipes.medvlmoe.sources import SPELLING
    from recipes.shared.training import is_main_process

    with spelled(SPELLING), bad_images_named():
        runs = train.main(config)
    if is_main_process():
        print("\n".join(f"trained: {run}" for run in runs))
        print(f"next: python -m recipes.medvlmoe evaluate {config.out}")


def _evaluate(arguments: list[str]) -> None:
    def evaluate(
        run: tyro.conf.Positional[Path],
        bootstrap: int = 1000,
        checkpoint: Literal["best", "last"] = "best",
        temperature: Literal["shared", "per-class"] = "shared",
        specificities: tuple[float, ...] = (0.9,),
    ) -> None:
        """Evaluate a trained run on its validation and test splits.

        Args:
            run: Folder of the run, or of one run per seed.
            bootstrap: Resamples of patients for the confidence intervals.
            checkpoint: Which weights.
            temperature: One temperature for all classes, or one each (multi-label tasks only).
            specificities: Each gives an operating point: the highest sensitivity at which the specificity is that.
        """
        from recipes.medvlmoe import evaluate as stage
        from recipes.medvlmoe.modality_scores import modality_lines

        metrics = stage.main(
            run,
            bootstrap=bootstrap,
            checkpoint=checkpoint,
            temperature=temperature,
            specificities=specificities,
        )
        print(_summary(metrics))
        for line in _expert_warnings(metrics):
            print(line)
        for line in (
            *_class_set_lines(metrics["test"].get("class_sets", {})),
            *modality_lines(metrics.get("modalities")),
        ):
            print(line)
        print(f"metrics: {run / 'metrics.json'}\nnext: python -m recipes.medvlmoe report {run}")

    tyro.cli(evaluate, args=arguments, prog="python -m recipes.medvlmoe evaluate")


def _external(arguments: list[str]) -> None:
    def external(
        run: tyro.conf.Positional[Path],
        other: DataConfig,
        name: str | None = None,
        label_map: tuple[str, ...] = (),
        split: Literal["test", "all"] = "test",
        bootstrap: int = 1000,
    ) -> None:
        """Evaluate a trained and evaluated run on another data set; nothing is fitted there.

        Args:
            run: Folder of the run, or of one run per seed.
            other: The other data set.
            name: Of the folder of the results, external/NAME in the run; by default the set's.
            label_map: Entries TRAINED=EXTERNAL, or TRAINED=ONE|OTHER; classes of the same name need none.
            split: The other set's test split, or all of its studies.
            bootstrap: Resamples of patients for the confidence intervals.
        """
        from recipes.medvlmoe import external as stage

        metrics = stage.main(run, other, name=name, label_map=label_map, split=split, bootstrap=bootstrap)
        print(_summary({"test": metrics["scores"]}))
        print(f"classes: {', '.join(metrics['label_map'])}; not mapped: {', '.join(metrics['not_mapped']) or 'none'}")
        folder = run / "external" / (name or metrics["data"])
        print(f"metrics: {folder / 'metrics.json'}\nopen {folder / 'report.html'}")

    tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(external),
        args=arguments,
        prog="python -m recipes.medvlmoe external",
    )


def _compare(arguments: list[str]) -> None:
    def compare(
        first: tyro.conf.Positional[Path],
        second: tyro.conf.Positional[Path],
        bootstrap: int = 2000,
        seed: int = 0,
        out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None,
    ) -> None:
        """Compare the test AUROCs of two evaluated runs: by class and their mean, over patients and over seeds.

        Args:
            first: Folder of an evaluated run, or of one run per seed.
            second: The other.
            bootstrap: Resamples of patients.
            seed: Seed of the resampling.
            out: File to write the comparison to; none by default.
        """
        from recipes.shared.compare import compare_runs, comparison_table
        from recipes.shared.runs import write_json

        result = compare_runs(first, second, bootstrap=bootstrap, seed=seed)
        print(comparison_table(result))
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, result)
            print(f"written: {out}")

    tyro.cli(compare, args=arguments, prog="python -m recipes.medvlmoe compare")


def _predict(arguments: list[str]) -> None:
    def predict(
        run: tyro.conf.Positional[Path],
        image: tuple[Path, ...] = (),
        text: str | None = None,
        csv: Path | None = None,
        image_root: Path | None = None,
        image_column: str | None = None,
        text_column: str | None = None,
        force_dicom: bool = False,
        out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv")] = Path("predictions.csv"),
        json: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None,
        overlays: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
        checkpoint: Literal["best", "last"] = "best",
    ) -> None:
        """Predict the findings of images with a trained run.

        Probabilities are calibrated by the temperatures of the run's evaluation.

        Args:
            run: Folder of the run.
            image: Image files, or folders of them; or give --csv.
            text: Report or note that belongs to the image, or alone.
            csv: Table of images and texts, of which a row may lack one; labels are not read.
            image_column: Its column of images, by default the run's.
            text_column: Its column of texts, by default the run's.
            image_root: Folder at which the paths in the csv begin, by default the csv's.
            force_dicom: Read DICOM files without preamble and file meta group.
            out: Table to write, one row per image.
            json: File to write as well: probabilities, experts and attention maps.
            overlays: Folder to write pictures into: the attention over each image, and the map as numbers.
            checkpoint: Which weights.
        """
        from recipes.medvlmoe import predict as stage

        if csv is not None and out.resolve() == csv.resolve():
            raise ValueError(f"out would replace the table that is read, {csv}: give another --out.")
        check_file(out, "--out")
        table = stage.main(
            run,
            images=image,
            text=text,
            csv=csv,
            image_root=image_root,
            image_column=image_column,
            text_column=text_column,
            force_dicom=force_dicom,
            checkpoint=checkpoint,
            json=json,
            overlays=overlays,
        )
        table.to_csv(out, index=False)
        print(table.to_string(index=False, max_rows=10, float_format="{:.3f}".format))
        print(f"written: {out} ({len(table)} rows)")
        for path in (json, overlays):
            if path is not None:
                print(f"written: {path}")
        if table.attrs["uncalibrated"]:
            print(f"note: {table.attrs['uncalibrated']}")

    tyro.cli(predict, args=arguments, prog="python -m recipes.medvlmoe predict")


def _report(arguments: list[str]) -> None:
    def report(run: tyro.conf.Positional[Path]) -> None:
        """Draw report.html from an evaluated run, and write its model card; one per seed where there are several.

        Args:
            run: Folder of the run.
        """
        from recipes.medvlmoe.card import write_card
        from recipes.medvlmoe.evaluate import seed_runs
        from recipes.medvlmoe.report import write_report, write_seeds_report

        seeds = seed_runs(run)
        for folder in seeds or [run]:
            print(f"open {write_report(folder)}")
            print(f"card: {write_card(folder)}")
        if seeds:
            print(f"open {write_seeds_report(run)}")

    tyro.cli(report, args=arguments, prog="python -m recipes.medvlmoe report")


def _serve(arguments: list[str]) -> None:
    def serve(
        run: tyro.conf.Positional[Path],
        checkpoint: Literal["best", "last"] = "best",
        host: str = "127.0.0.1",
        port: int | None = None,
        max_upload: int = 64,
        max_megapixels: float = 40.0,
    ) -> None:
        """Serve a page on which to try a trained run: choose an example or upload an image, and edit the text.

        Args:
            run: Folder of the run; of one of its seeds, where there are several.
            checkpoint: Which weights.
            host: Address to listen at; by default this machine alone can reach it.
            port: Port to listen at, by default the first free one from 7860 on.
            max_upload: Largest upload, in MiB.
            max_megapixels: Largest image, in millions of pixels.
        """
        from recipes.medvlmoe.serve import serve as stage

        stage(
            run,
            checkpoint=checkpoint,
            host=host,
            port=port,
            max_upload=max_upload,
            max_megapixels=max_megapixels,
        )

    tyro.cli(serve, args=arguments, prog="python -m recipes.medvlmoe serve")


def _table(name: str, arguments: list[str]) -> None:
    from recipes.medvlmoe.tables.command import run_command

    run_command(name, arguments, parse_train)


def _summary(metrics: dict) -> str:
    test = metrics["test"]
    value = test["macro_auroc"]
    if isinstance(value, dict):
        low, high = value["ci95"] or (float("nan"), float("nan"))
        return f"test macro AUROC {value['mean']:.4f} over {value['n']} seeds (95% t-interval {low:.4f} to {high:.4f})"
    if value is None:
        return "test macro AUROC: undefined (no class has positives and negatives)"
    low, high = test["macro_auroc_ci95"] or (float("nan"), float("nan"))
    return f"test macro AUROC {value:.4f} (95% CI {low:.4f} to {high:.4f}, {test['groups']} groups resampled)"


def _expert_warnings(metrics: dict) -> list[str]:
    """Says which experts the router leaves unused on validation and test, for each seed."""
    if "runs" in metrics:
        return [f"warning: {seed}: {text}" for seed, text in metrics.get("expert_warnings", {}).items()]
    experts = metrics.get("experts")
    warning = experts["val_and_test"]["warning"] if experts else None
    return [f"warning: {warning}"] if warning else []


def _class_set_lines(class_sets: dict) -> list[str]:
    """Says the macro AUROC over each named set of classes."""
    lines = []
    for name, scores in class_sets.items():
        macro = scores["macro_auroc"]
        macro = macro["mean"] if isinstance(macro, dict) else macro
        value = "undefined" if macro is None else f"{macro:.4f}"
        lines.append(f"test macro AUROC over the {len(scores['classes'])} {name} classes: {value}")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
