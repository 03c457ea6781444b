"""What a pretrained run is: its facts and its routing, for ``metrics.json``."""

from pathlib import Path
from typing import Any

from recipes.data.pairs import PairSource, PairStream
from recipes.medmoe.inference.reference import load_reference
from recipes.medmoe.inference.routing import routing_report
from recipes.medmoe.inference.run import Session
from recipes.shared.epochs import FIRST_EPOCH, training_from_one
from recipes.shared.runs import environment, read_object, update_metrics


def summarise(run: Path) -> str:
    """Writes the sections ``run``, ``training``, ``routing`` and ``routing_purity`` of a run's ``metrics.json``.

    The routing is that of the test split, by the epoch with the best validation loss.

    Returns:
        A line on the routing, and one more where experts that should live do not.
    """
    session = Session.open(run)
    kept = read_object(run / "training.json", ("epochs", "best_epoch", "seconds", "peak_memory_bytes", "skipped"))
    source, training = session.source(), training_from_one(kept)
    routing = routing_report(session, source.test) if session.route_on != "none" else None
    if session.route_on != "text" and session.config.model.local_branch != "none":
        load_reference(session, "best")  # made now, while the data are at hand
    about = FIRST_EPOCH | {name: training[name] for name in ("epochs", "best_epoch", "seconds", "peak_memory_bytes")}
    about |= {name: training.get(name) for name in ("samples_per_second", "data_wait")}
    update_metrics(
        run,
        run=_about(session, source, training),
        training=about,
        routing_purity=None if routing is None else routing["purity"],
        routing=routing,
    )
    if routing is None:
        return f"no experts to choose from (--local-branch {session.config.model.local_branch})"
    live = f"{routing['live_experts']} of {routing['experts']} experts live"
    if routing["purity"] is None:
        line = f"test routing: no modality is known, {live}"
    else:
        line = f"test routing: purity {routing['purity']:.3f}, accuracy {routing['accuracy']:.3f}, {live}"
    return line if routing["warning"] is None else f"{line}\nwarning: on the test split {routing['warning']}"


def _about(session: Session, source: PairSource, training: dict[str, Any]) -> dict[str, Any]:
    config = session.config
    notes = list(training.get("notes", source.notes))  # of a stream, with what its index left out
    if training["skipped"]:
        notes.append(f"{training['skipped']} samples of the training stream could not be read and were skipped")
    return {
        "name": session.run.name,
        "preset": config.preset,
        "data": source.name,
        "seed": config.seeds[0],
        "route_on": session.route_on,
        "local_branch": config.model.local_branch,
        "modalities": list(session.modalities),
        "image_encoder": config.model.image_encoder,
        "text_encoder": config.model.text_encoder,
        "pairs": {
            name: training.get("train_pairs") if isinstance(split, PairStream) else len(split)
            for name, split in (("train", source.train), ("val", source.val), ("test", source.test))
        },
        "parameters": sum(p.numel() for p in session.model.parameters()),
        "notes": notes,
        **environment(),
    }
