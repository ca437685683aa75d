"""A proxy before an object store that does what networks and busy stores do: on purpose, and counted."""

import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

# slow down, 500: an answer of the store. reset, hang: nothing reaches it. lost: it has acted, and nobody
# hears of it. cut: its answer ends half way. stale: the first listing that was seen, again.
Action = Literal["500", "slow down", "reset", "hang", "lost", "cut", "stale"]
_ANSWERS = {"500": (500, "InternalError"), "slow down": (503, "SlowDown")}


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    action: str  # empty where it was passed on
    status: int = 0


@dataclass
class Rule:
    """What happens to requests whose ``METHOD /path?query`` matches, so many times."""

    pattern: str
    action: Action
    times: float = float("inf")


class FaultProxy:
    """Passes requests on to a store, except for those that a rule or chance is meant for."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.rules: list[Rule] = []
        self.seen: list[Seen] = []
        self.chance: Callable[[str], Action | None] = lambda request: None
        self.before: Callable[[str], object] = lambda request: None
        self.hooks: list[tuple[str, Callable[[], object]]] = []
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fail(self, pattern: str, action: Action, times: float = float("inf")) -> None:
        self.rules.append(Rule(pattern, action, times))

    def fail_by_chance(self, seed: int, share: float, actions: list[Action]) -> None:
        """Hit this share of all requests; never the same one more than three times in a row."""
        rng = random.Random(seed)
        in_a_row: Counter[str] = Counter()

        def chance(request: str) -> Action | None:
            if rng.random() >= share or in_a_row[request] >= 3:
                in_a_row[request] = 0
                return None
            in_a_row[request] += 1
            return rng.choice(actions)

        self.chance = chance

    def after(self, pattern: str, act: Callable[[], object]) -> None:
        """Do something once, after the first request that matches and before its answer is given."""
        self.hooks.append((pattern, act))

    def run_hooks(self, request: str) -> None:
        with self.lock:
            due = [hook for hook in self.hooks if re.search(hook[0], request)]
            self.hooks = [hook for hook in self.hooks if hook not in due]
        for _, act in due:
            act()

    def decide(self, request: str) -> Action | None:
        with self.lock:
            for rule in self.rules:
                if rule.times > 0 and re.search(rule.pattern, request):
                    rule.times -= 1
                    return rule.action
            return self.chance(request)

    def note(self, request: str, action: str, status: int = 0) -> None:
        method, _, path = request.partition(" ")
        with self.lock:
            self.seen.append(Seen(method, path, action, status))

    def hit(self) -> Counter[str]:
        """How often each fault was injected."""
        with self.lock:
            return Counter(seen.action for seen in self.seen if seen.action)

    def attempts(self, pattern: str) -> int:
        """How many requests matched."""
        with self.lock:
            return sum(bool(re.search(pattern, f"{s.method} {s.path}")) for s in self.seen)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are what this proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def _any(self) -> None:
        body = self._body()
        request = f"{self.command} {self.path}"
        self.owner.before(request)
        action = self.owner.decide(request)
        if action in _ANSWERS:
            status, code = _ANSWERS[action]
            self.owner.note(request, action, status)
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
            headers = [("Content-Type", "application/xml"), ("x-ms-error-code", code)]
            self._answer(status, headers, text.encode())
        elif action == "reset":
            self.owner.note(request, action)
            self.owner.run_hooks(request)
            self._reset()
        elif action == "hang":
            self.owner.note(request, action)
            self.connection.settimeout(120)
            self.connection.recv(1)  # ends when the client gives up
            self.close_connection = True
        else:
            self._pass_on(request, body, action)

    def _pass_on(self, request: str, body: bytes, action: str | None) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream_port, timeout=120)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (
                    "connection",
                    "expect",
                    "transfer-encoding",
                    "content-length",
                ):
                    upstream.putheader(name, value)
            if body or "Content-Length" in self.headers or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            headers, data, status = response.getheaders(), response.read(), response.status
        except OSError:
            self.owner.note(request, "upstream away")
            self._reset()
            return
        finally:
            upstream.close()
        is_listing = self.command == "GET" and ("prefix=" in self.path or "list-type" in self.path)
        if is_listing:
            with self.owner.lock:
                first = self.owner.listings.setdefault(self.path, (status, headers, data))
            if action == "stale":
                status, headers, data = first
        self.owner.note(request, action or "", status)
        self.owner.run_hooks(request)
        if action == "lost":
            self._reset()
        else:
            self._answer(status, headers, data, cut=action == "cut")

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = str(len(data))
        if self.command == "HEAD":
            length = {n.lower(): v for n, v in headers}.get("content-length", "0")
            data = b""
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if cut and data:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._reset()
        else:
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reset(self) -> None:
        """End the connection as a crash does: with a reset, and no word."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing: what was seen is counted."""

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any
