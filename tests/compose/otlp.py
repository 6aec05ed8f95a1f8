"""Receives spans as OTLP over HTTP (protobuf) on port 4318 and keeps them. A GET on port 16686 returns all of them in
base64.

The requests are concatenated unparsed: concatenated protobuf messages are one message with the lists of all of them.
"""

import base64
import http.server
import threading

RECEIVED: list[bytes] = []


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        RECEIVED.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        self.answer(base64.b64encode(b"".join(RECEIVED)), "text/plain")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


if __name__ == "__main__":
    servers = [http.server.ThreadingHTTPServer(("", port), Receiver) for port in (4318, 16686)]
    threading.Thread(target=servers[0].serve_forever, daemon=True).start()
    servers[1].serve_forever()
