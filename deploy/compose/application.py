#!/usr/bin/env python3
"""A small application that shows who is signed in: what the proxy in front of it says in its headers.

    application.py NAME ADDRESS PORT

Browsers get a page; other clients get JSON: the application's name, the method, the target, the number of bytes in the
body, and all headers as a list of pairs. A WebSocket gets one message, the user's name. Needs Python 3.9.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IDENTITY = ("Remote-User", "Remote-Email", "Remote-User-Id", "Remote-Groups", "Remote-Session-Id")
# RFC 6455, section 1.3.
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; overflow-wrap: anywhere }}
</style>
<h1>{name}</h1>
<p>{who}</p>
<table><tr><th>header<th>what the proxy says{rows}</table>
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = "application"

    def answer(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.websocket()
            return
        size = self.read_body()
        if self.headers.get("Accept", "").startswith("text/html"):
            body, kind = self.page().encode(), "text/html; charset=utf-8"
        else:
            said = {"application": self.name, "method": self.command, "target": self.path, "body": size}
            body, kind = json.dumps({**said, "headers": self.headers.items()}).encode(), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def read_body(self) -> int:
        """Reads the body and returns its length in bytes."""
        size = 0
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while chunk := int(self.rfile.readline().split(b";")[0], 16):
                size += len(self.rfile.read(chunk))
                self.rfile.readline()
            self.rfile.readline()
            return size
        left = int(self.headers.get("Content-Length", 0))
        while left and (got := self.rfile.read(min(left, 65536))):
            size, left = size + len(got), left - len(got)
        return size

    def user(self) -> str:
        return urllib.parse.unquote(self.headers.get("Remote-User", ""))

    def page(self) -> str:
        rows = "".join(
            f"<tr><td>{name}<td>{html.escape(urllib.parse.unquote(self.headers.get(name, '')))}" for name in IDENTITY
        )
        who = f"You are signed in as <strong>{html.escape(self.user())}</strong>." if self.user() else "Who are you?"
        return PAGE.format(name=html.escape(self.name), who=who, rows=rows)

    def websocket(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key", "")
        accept = base64.b64encode(hashlib.sha1((key + WEBSOCKET).encode()).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        text = self.user().encode()[:125]
        # A text frame, then a close frame.
        self.wfile.write(bytes([0x81, len(text)]) + text + b"\x88\x00")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def server(name: str, address: str, port: int) -> ThreadingHTTPServer:
    """An application that listens; `serve_forever` answers."""
    return Server((address, port), type("Application", (Handler,), {"name": name}))


def main() -> int:
    if len(sys.argv) != 4 or not sys.argv[3].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    server(sys.argv[1], sys.argv[2], int(sys.argv[3])).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
