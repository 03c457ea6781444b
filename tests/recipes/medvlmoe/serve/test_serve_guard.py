"""Requests that the page does not need are refused before gradio sees them."""

import pytest

from recipes.medvlmoe.serve.guard import Guard
from recipes.medvlmoe.serve.uploads import UploadFolder
from tests.recipes.medvlmoe.serve.endpoint import Endpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/file=../../etc/passwd",
        "/monitoring",
        "/gradio_api/deep_link",
        "/docs",
        "/openapi.json",
    ],
)
def test_other_routes_are_not_served(server, path):
    assert Endpoint(server.url, "guard").request("GET", path)[0] == 404


def test_paths_outside_of_the_page_s_own_files_are_not_served(server):
    endpoint = Endpoint(server.url, "guard")
    for path in ("/static/../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/setup.py", "/static//etc/passwd"):
        status, content = endpoint.request("GET", path)
        assert status >= 400
        assert b"root:" not in content


def test_messages_are_limited_and_need_a_length(server):
    endpoint = Endpoint(server.url, "guard")
    assert endpoint.announce("/gradio_api/queue/join", 2**20 + 1) == 413
    assert endpoint.announce("/gradio_api/upload", 3 * 2**20) == 413
    assert endpoint.request("POST", "/gradio_api/queue/join")[0] in (411, 422)


def test_every_answer_forbids_what_lies_elsewhere(server):
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    assert "default-src 'self'" in answer.getheader("content-security-policy")
    assert answer.getheader("x-content-type-options") == "nosniff"
    assert "googleapis" not in content


def test_uploads_wait_while_the_folder_is_full(tmp_path):
    folder = UploadFolder(tmp_path / "uploads", max_bytes=1000, max_age=60)
    guard = Guard(None, uploads=folder, max_upload=500)
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"content-length", b"400")]}
    assert guard._refusal(scope) is None
    (folder.folder / "x").write_bytes(bytes(700))
    status, reason = guard._refusal(scope)
    assert status == 507
    assert "wait some minutes" in reason
    assert guard._refusal(scope | {"headers": []}) == (411, "a length is needed")
