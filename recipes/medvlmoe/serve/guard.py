"""What stands before the page's server: which requests it takes, and what the browser may load.

gradio's server has more routes than the page needs: one fetches addresses of others, one keeps a copy of the page's
state on disk. Only those below are served.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from recipes.medvlmoe.serve.uploads import UploadFolder

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

UPLOAD = "/gradio_api/upload"
ROUTES = (
    "/assets/", "/static/", "/svelte/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
    "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/heartbeat/",
    "/gradio_api/queue/", "/gradio_api/call/", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/upload_progress",
)  # fmt: skip
"""Beginnings of the paths that are served, besides the page itself and uploads."""
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; "
        "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Nothing is loaded from elsewhere, whatever the page asks for."""
MAX_MESSAGE_BYTES = 2**20
"""Most of a request that is no upload: a text and what belongs to it."""


class Guard:
    """ASGI middleware that refuses what the page does not need.

    Args:
        app: The server behind.
        uploads: The folder of uploads.
        max_upload: Most bytes of one upload.
    """

    def __init__(self, app: Any, *, uploads: UploadFolder, max_upload: int) -> None:
        self.app, self.uploads, self.max_upload = app, uploads, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers with what is wrong with it."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _answer(send, *refusal)
                return
        elif scope["type"] != "lifespan":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Returns status and reason, ``None`` for a request that is served."""
        path, method = scope["path"], scope["method"]
        if path not in ("/", UPLOAD) and not path.startswith(ROUTES):
            return 404, "not served"
        if method in ("GET", "HEAD"):
            return None
        length = _content_length(scope)
        if length is None:
            return 411, "a length is needed"
        if length > (self.max_upload + MAX_MESSAGE_BYTES if path == UPLOAD else MAX_MESSAGE_BYTES):
            return 413, f"larger than the {self.max_upload / 2**20:g} MiB that an upload may have"
        if path == UPLOAD and not self.uploads.has_room(length):
            return 507, "too many uploads at once: wait some minutes"
        return None


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def _answer(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
