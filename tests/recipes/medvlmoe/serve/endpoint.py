"""Calls the page's endpoints as its script does, with names that browsers would not send."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


class Endpoint:
    """One browser's session at a server.

    Args:
        url: Of the server.
        session: Names the session.
    """

    def __init__(self, url: str, session: str) -> None:
        self.address, self.session = urlsplit(url).netloc, session

    def request(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        """Returns status and content of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def announce(self, path: str, length: int) -> int:
        """Returns the status of the answer to a message of which only the length was sent."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.putrequest("POST", path)
            connection.putheader("Content-Length", str(length))
            connection.endheaders()
            return connection.getresponse().status
        finally:
            connection.close()

    def upload(self, name: str, data: bytes) -> tuple[int, str]:
        """Returns status and, where it is 200, the path of the uploaded file."""
        quoted = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22").replace(b"\n", b"%0A")
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + quoted + b'"\r\n'
        body = head + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--edge--\r\n"
        status, content = self.request("POST", "/gradio_api/upload", body, "multipart/form-data; boundary=edge")
        return status, json.loads(content)[0] if status == 200 else content.decode("utf-8", "replace")

    def call(self, name: str, *values: Any) -> Any:
        """Returns what an endpoint returns, ``None`` where it fails."""
        body = json.dumps({"data": values, "session_hash": self.session}).encode()
        status, content = self.request("POST", f"/gradio_api/call/{name}", body)
        if status != 200:
            return None
        _, stream = self.request("GET", f"/gradio_api/call/{name}/{json.loads(content)['event_id']}")
        event, _, data = stream.decode().strip().rpartition("\n")
        return json.loads(data.removeprefix("data: ")) if event.endswith("event: complete") else None

    def take(self, path: str) -> Any:
        """Has the server read an uploaded file."""
        return self.call("take", {"path": path, "meta": {"_type": "gradio.FileData"}})
