"""Takes spans by OTLP over HTTP (protobuf) on 4318 and keeps them; /api/traces/TRACE_ID on 16686 answers with those of
one trace, as JSON. For drill-observability.yml.
"""

import collections
import http.server
import json
import threading
from collections.abc import Iterator

TRACES: dict[str, list[dict]] = collections.defaultdict(list)


def number(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that are messages, strings or bytes."""
    at = 0
    while at < len(data):
        tag, at = number(data, at)
        if tag & 7 == 2:
            length, at = number(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            at = number(data, at)[1] if tag & 7 == 0 else at + {1: 8, 5: 4}[tag & 7]


def only(data: bytes, wanted: int) -> list[bytes]:
    return [value for found, value in fields(data) if found == wanted]


def attributes(data: bytes, wanted: int) -> dict[str, str]:
    """Those whose value is a string: KeyValue {key = 1, value = 2}, AnyValue {string_value = 1}."""
    pairs = [dict(fields(pair)) for pair in only(data, wanted)]
    return {pair[1].decode(): only(pair[2], 1)[0].decode() for pair in pairs if only(pair[2], 1)}


def take(request: bytes) -> None:
    """ExportTraceServiceRequest 1 → ResourceSpans {resource = 1, scope_spans = 2} → ScopeSpans 2 → Span."""
    for resource_spans in only(request, 1):
        resource = attributes(b"".join(only(resource_spans, 1)), 1)
        for scope_spans in only(resource_spans, 2):
            for span in only(scope_spans, 2):
                found = dict(fields(span))
                TRACES[found[1].hex()].append(
                    {
                        "id": found[2].hex(),
                        "parent": found.get(4, b"").hex(),
                        "name": found[5].decode(),
                        "attributes": attributes(span, 9),
                        "resource": resource,
                    }
                )


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        take(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(b"", "application/x-protobuf")

    def do_GET(self) -> None:
        self.answer(json.dumps(TRACES.get(self.path.rpartition("/")[2], [])).encode(), "application/json")

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
