"""Names of the hub, asked for at a small server of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from untax.check.hub import is_hub_name

ASK = """
import json, sys
from untax.check.hub import hub_findings
names = {tuple(name): "here" for name in json.loads(sys.argv[1])}
found = hub_findings(names, offline=sys.argv[2] == "offline")
print(json.dumps([[finding.state, finding.text] for finding in found]))
"""


class Hub(BaseHTTPRequestHandler):
    """Knows owner/open; owner/gated to nobody, owner/mine to us; owner/broken is out of order."""

    def do_GET(self) -> None:
        kind, _, name = self.path.removeprefix("/api/").partition("s/")
        name = name.split("?")[0]
        check = name.endswith("/auth-check")
        name = name.removesuffix("/auth-check")
        gated = {"owner/gated": "manual", "owner/mine": "auto"}.get(name, False)
        if name == "owner/gated" and check:
            self.answer(403, {}, **{"X-Error-Code": "GatedRepo"})
        elif name in ("owner/open", "owner/gated", "owner/mine"):
            self.answer(200, {"id": name, "gated": gated, "siblings": [], "tags": [], "private": False, "kind": kind})
        elif name == "owner/broken":
            self.answer(500, {})
        else:
            # The real hub does not tell the names of private repositories from wrong ones.
            self.answer(401, {}, **{"X-Error-Code": "RepoNotFound"} if name == "owner/private" else {})

    def answer(self, status: int, content: dict[str, Any], **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(*names: tuple[str, str], endpoint: str, home: Path, mode: str = "online") -> list[list[str]]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    run = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(names), mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_what_the_hub_says(endpoint: str, tmp_path: Path) -> None:
    names = [
        ("model", "owner/open"),
        ("dataset", "owner/open"),
        ("model", "owner/gated"),
        ("model", "owner/mine"),
        ("dataset", "owner/nothing"),
        ("model", "owner/private"),
    ]
    found = ask(*names, endpoint=endpoint, home=tmp_path)
    assert [state for state, _ in found] == ["ok", "ok", "fail", "ok", "fail", "fail"]
    assert "model owner/gated is gated" in found[2][1]
    assert "gated, and you have access" in found[3][1]
    assert "no dataset owner/nothing, or it is private" in found[4][1]


def test_a_hub_out_of_order_is_no_error(endpoint: str, tmp_path: Path) -> None:
    """And it is not asked for the rest."""
    found = ask(("model", "owner/broken"), ("model", "owner/nothing"), endpoint=endpoint, home=tmp_path)
    assert [state for state, _ in found] == ["unknown", "unknown"]
    assert "did not answer before" in found[1][1]


def test_no_hub_at_all(tmp_path: Path) -> None:
    found = ask(("model", "owner/open"), endpoint="http://127.0.0.1:1", home=tmp_path)
    assert [state for state, _ in found] == ["unknown"]
    assert "not checked" in found[0][1]


def test_offline_and_cached(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    found = ask(
        ("model", "owner/cached"),
        ("dataset", "owner/cached"),
        endpoint="http://127.0.0.1:1",
        home=tmp_path,
        mode="offline",
    )
    assert found == [
        ["ok", "model owner/cached is in the local cache of the hub"],
        ["unknown", "dataset owner/cached: not checked (offline)"],
    ]


def test_names(tmp_path: Path) -> None:
    (tmp_path / "owner" / "here").mkdir(parents=True)
    assert is_hub_name("owner/name", tmp_path)
    for name in ("./owner/name", "owner/here", "rows.jsonl", "https://somewhere/x", "a/b/c"):
        assert not is_hub_name(name, tmp_path)
