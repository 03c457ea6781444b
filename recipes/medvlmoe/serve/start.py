"""Starts the page's server, on this machine alone unless told otherwise."""

import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.data.images.read import ImageLimits
from recipes.medvlmoe.serve.guard import Guard
from recipes.medvlmoe.serve.page import MAX_AGE, build_page, style
from recipes.medvlmoe.serve.predictor import Predictor
from recipes.medvlmoe.serve.uploads import UploadFolder
from recipes.medvlmoe.trained import load_run
from recipes.shared.extras import require

MOST_UPLOADS = 8
"""As many uploads of the largest size may lie on disk at once."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        page: gradio's ``Blocks``.
        uploads: The folder of uploads, which goes with the server.
    """

    url: str
    page: Any
    uploads: UploadFolder

    def close(self) -> None:
        """Stops the server and removes what was uploaded."""
        self.page.close()
        self.uploads.remove()


def start(
    run: Path,
    *,
    checkpoint: str = "best",
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload: int = 64,
    max_megapixels: float = 40.0,
) -> Server:
    """Starts the page of a run and returns at once.

    Args:
        run: Folder of the run; of one of its seeds, where there are several.
        checkpoint: ``"best"`` or ``"last"``.
        host: Address to listen at.
        port: Port to listen at; by default the first free one from 7860 on.
        max_upload: Largest upload, in MiB.
        max_megapixels: Largest image, in millions of pixels.

    Raises:
        ValueError: If the folder is not that of a trained run, or a limit is not positive.
        ImportError: If gradio is not installed.
        OSError: If the port is taken.
    """
    for name, value in (("max_upload", max_upload), ("max_megapixels", max_megapixels)):
        if value <= 0:
            raise ValueError(f"{name} (--{name.replace('_', '-')}) must be positive, got {value}.")
    uploads = UploadFolder(
        Path(tempfile.mkdtemp(prefix="medvlmoe-serve-")), max_bytes=MOST_UPLOADS * max_upload * 2**20, max_age=MAX_AGE
    )
    # gradio reads these when it is imported, and when it makes a page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    try:
        gr = require("gradio", "the page", extra="serve")
        page = build_page(Predictor(load_run(run, checkpoint)), ImageLimits(max_pixels=int(max_megapixels * 1e6)))
        middleware = require("starlette.middleware", "the page", extra="serve").Middleware
        guard = middleware(Guard, uploads=uploads, max_upload=max_upload * 2**20)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            max_file_size=max_upload * 2**20,
            app_kwargs={"middleware": [guard]},
            # Fonts by name only: gradio's own theme would fetch some.
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=style(),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            state_session_capacity=200,
            prevent_thread_lock=True,
            quiet=True,
        )
    except BaseException:
        uploads.remove()
        raise
    return Server(url, page, uploads)


def serve(run: Path, **options: Any) -> None:
    """Starts the page of a run and stays until it is interrupted.

    Args:
        run: Folder of the run.
        **options: Of :func:`start`.
    """
    # A terminated server removes what was uploaded, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = start(run, **options)
    print(f"open {server.url}\nFor research only; not a medical device. Ctrl+C ends the server.", flush=True)
    try:
        server.page.block_thread()
    finally:
        server.close()
