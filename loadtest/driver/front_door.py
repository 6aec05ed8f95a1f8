"""What it costs that a proxy asks: a static page behind nginx with and without authfleet, and the question alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from .measurements import CONNECTIONS, say
from .parts import BenchError, Nginx, Redis, Server, cpu, encode, process
from .sessions import uuid7
from .targets import ROOT, free_port

LOGIN, APP = "login.example.org", "app1.example.org"
SESSIONS = 20
ALONE, ASKING, CEILING = "page behind nginx alone", "… that asks authfleet", "… that asks a handler that says 200"
LOOKING_UP = "… that asks a bare handler with a lookup"
PROFILE, VERIFY = "GET /profile", "GET /auth/verify/nginx"
# Over nginx, server and Redis, authfleet costs at most this many times the smallest handler that looks a session up
# (loadtest/bare, with sessions of two fields); and a question at most this many times a session check.
PAGE_RATIO, VERIFY_RATIO = 1.15, 1.05


@dataclass
class Cost:
    """Microseconds of CPU per request, by part, the median latency in milliseconds, and requests per second."""

    nginx: float
    server: float
    redis: float
    p50_ms: float
    per_second: float

    @property
    def all(self) -> float:
        return self.nginx + self.server + self.redis

    @staticmethod
    def median(costs: list[Cost]) -> Cost:
        return Cost(*(statistics.median(getattr(cost, part.name) for cost in costs) for part in fields(Cost)))


def measure(directory: Path, binary: Path, bare: Path, seconds: int, rounds: int) -> dict:
    """Measures all arms in alternation. Returns medians by arm, and the ratios."""
    with contextlib.ExitStack() as stack:
        home = directory / "applications"
        home.mkdir()
        (home / "secret").write_text(secrets.token_hex(32))
        redis = stack.enter_context(Redis.started(home, "--appendonly", "no"))
        hosts = {"PUBLIC_URL": f"http://{LOGIN}", "PROTECTED_HOSTS": APP, "TRUSTED_PROXIES": "127.0.0.1/32"}
        server = stack.enter_context(Server.started(home, binary, redis, **hosts, REGISTRATIONS_PER_ADDRESS="1000"))
        signed_in = [sign_in(server) for _ in range(SESSIONS)]
        handler = stack.enter_context(nginx(home / "handler", "location / { return 200; }"))
        page = f"location / {{ root {ROOT / 'deploy' / 'forward-auth'}; }}"
        alone = stack.enter_context(nginx(home / "alone", page))
        asking = stack.enter_context(nginx(home / "asking", protected(), urlsplit(server.base).netloc))
        ceiling = stack.enter_context(nginx(home / "ceiling", protected(), f"127.0.0.1:{handler.port}"))
        lookup = f"127.0.0.1:{free_port()}"
        looking_up = stack.enter_context(
            process([str(bare), lookup, f"redis://127.0.0.1:{redis.port}"], home, int(lookup.rpartition(":")[2]))
        )
        small = [f"small:{n}" for n in range(SESSIONS)]
        redis.pipe(encode("HSET", key, "user_id", str(uuid7()), "username", "session") for key in small)
        bare_cookies = [f"session={key}" for key in small]
        by_lookup = stack.enter_context(nginx(home / "lookup", protected(), lookup))

        described = {"X-Original-Method": "GET", "X-Original-URL": f"http://{APP}/README.md"}
        own, bound = [cookies[0] for cookies in signed_in], [cookies[1] for cookies in signed_in]
        arms = {
            ALONE: (alone.base, "/README.md", bound, {}, alone, []),
            ASKING: (asking.base, "/README.md", bound, {}, asking, [server.pid]),
            CEILING: (ceiling.base, "/README.md", bound, {}, ceiling, [handler.pid]),
            LOOKING_UP: (by_lookup.base, "/README.md", bare_cookies, {}, by_lookup, [looking_up.pid]),
            PROFILE: (server.base, "/profile", own, {}, None, [server.pid]),
            VERIFY: (server.base, "/auth/verify/nginx", bound, described, None, [server.pid]),
        }
        found: dict[str, list[Cost]] = {name: [] for name in arms}
        for turn in range(-1, rounds):
            for name, (base, path, cookies, headers, proxy, asked) in arms.items():
                say(f"round {turn + 1} of {rounds}: {name}")
                script = requests(home / "requests.lua", path, cookies, headers)
                cost = wrk(base, script, seconds if turn >= 0 else 1, proxy, asked, redis)
                # The first turn opens connections and fills caches.
                if turn >= 0:
                    found[name].append(cost)
    costs = {name: Cost.median(all_) for name, all_ in found.items()}
    return {
        "arms": {name: asdict(cost) for name, cost in costs.items()},
        "page_ratio": costs[ASKING].all / costs[LOOKING_UP].all,
        "ceiling_ratio": costs[ASKING].all / costs[CEILING].all,
        "verify_ratio": costs[VERIFY].all / costs[PROFILE].all,
    }


def table(r: dict) -> str:
    lines = [f"{'applications, CPU in microseconds':<44}{'nginx':>8}{'server':>8}{'Redis':>8}{'all':>8}{'p50 ms':>8}"]
    for name, arm in r["arms"].items():
        whole = arm["nginx"] + arm["server"] + arm["redis"]
        cells = "".join(f"{value:8.1f}" for value in (arm["nginx"], arm["server"], arm["redis"], whole))
        lines.append(f"{name:<44}{cells}{arm['p50_ms']:8.2f}")
    lines.append(
        f"{'asking authfleet, by the bare handler with a lookup':<68}{r['page_ratio']:8.2f} (at most {PAGE_RATIO})"
    )
    lines.append(f"{'asking authfleet, by the handler that says 200':<68}{r['ceiling_ratio']:8.2f}")
    lines.append(f"{'a question, by a session check':<68}{r['verify_ratio']:8.2f} (at most {VERIFY_RATIO})")
    return "\n".join(lines)


def protected() -> str:
    """The page, protected with the files of the recipe."""
    return (
        "include authfleet/server.conf;\n"
        f"location / {{ include authfleet/protect.conf; root {ROOT / 'deploy' / 'forward-auth'}; }}"
    )


@contextlib.contextmanager
def nginx(directory: Path, server: str, asked: str = "") -> Iterator[Nginx]:
    """Starts nginx with this content of its server {}; `asked` is the address of authfleet."""
    directory.mkdir()
    (directory / "authfleet").symlink_to(ROOT / "deploy" / "forward-auth" / "nginx" / "authfleet")
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    lines = [f"{kind}_temp_path {directory}/{kind};" for kind in kinds]
    if asked:
        # As in the recipe's conf.d/authfleet.conf.
        lines.append(f"upstream authfleet {{ server {asked}; keepalive 32; keepalive_timeout 15s; }}")
    lines += [
        'map $http_host $authfleet_port { default ""; }',
        "map $http_cookie $application_cookies { default $http_cookie; }",
        'map $http_upgrade $connection_upgrade { default upgrade; "" ""; }',
    ]
    (directory / "nginx.conf").write_text(
        f"master_process off; pid {directory}/pid; error_log stderr;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000; {' '.join(lines)}\n"
        f"server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
    )
    with Nginx.started(directory, directory / "nginx.conf", port) as it:
        yield it


def sign_in(server: Server) -> tuple[str, str]:
    """Makes an account with a session; returns its cookies at the sign-in host and at the application's."""
    own = session(server)
    start, location = redirected(server, APP, "/.authfleet/start?to=/", "")
    _, location = redirected(server, LOGIN, location, own)
    bound, _ = redirected(server, APP, location, start)
    return own, bound


def session(server: Server) -> str:
    """Makes an account with a session; returns its cookie."""
    who = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_urlsafe(18)}
    for path, wanted in (("/auth/register", 201), ("/auth/login", 200)):
        status, _, own = server.post(path, who)
        if status != wanted:
            raise BenchError(f"{path}: {status}")
    return own


def redirected(server: Server, host: str, target: str, cookie: str) -> tuple[str, str]:
    """The cookie that an answer sets, and the path and query that it redirects to."""
    connection = http.client.HTTPConnection(urlsplit(server.base).netloc, timeout=30)
    try:
        connection.request("GET", target, headers={"Host": host, "Cookie": cookie})
        answer = connection.getresponse()
        url = urlsplit(answer.getheader("Location") or "")
        if answer.status not in (302, 303):
            raise BenchError(f"{host}{target}: {answer.status}")
        return (answer.getheader("Set-Cookie") or "").split(";")[0], f"{url.path}?{url.query}"
    finally:
        connection.close()


def requests(script: Path, path: str, cookies: list[str], headers: dict[str, str]) -> Path:
    """Writes a wrk script that sends each of the cookies in turn."""
    all_ = [{"Host": APP, "Cookie": cookie, **headers} for cookie in cookies]
    tables = ",\n".join(
        "{" + ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in h.items()) + "}" for h in all_
    )
    script.write_text(
        f"local headers = {{\n{tables}\n}}\nlocal requests, n = {{}}, 0\n"
        f'function init() for i, each in ipairs(headers) do requests[i] = wrk.format("GET", "{path}", each) end end\n'
        "function request() n = n % #requests + 1; return requests[n] end\n"
    )
    return script


def wrk(base: str, script: Path, seconds: int, proxy: Nginx | None, asked: list[int], redis: Redis) -> Cost:
    """Sends requests for some seconds. `asked` are the processes behind the proxy."""
    used = lambda: (proxy.cpu() if proxy else 0.0, sum(map(cpu, asked)), redis.cpu())  # noqa: E731
    before = used()
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), base]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    after = used()
    count = int(re.search(r"(\d+) requests in", shown).group(1))
    if "Non-2xx" in shown or "Socket errors" in shown or not count:
        raise BenchError(f"{base}: wrong answers under load:\n{shown}")
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", shown).groups()
    each = [(b - a) / count * 1e6 for a, b in zip(before, after)]
    return Cost(*each, float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit], count / seconds)
