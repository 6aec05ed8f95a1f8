"""Sessions that `loadtest/bench` makes directly in Redis, as the server would."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import time
import urllib.request
import uuid
from collections.abc import Iterator

from .parts import BenchError, Redis, RedisCluster, Server, encode


def uuid7() -> uuid.UUID:
    bits = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return uuid.UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def text64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def mix(bits: int) -> int:
    """The last step of MurmurHash3."""
    mask = (1 << 64) - 1
    bits = (bits ^ bits >> 33) * 0xFF51AFD7ED558CCD & mask
    bits = (bits ^ bits >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return bits ^ bits >> 33


def place(user: uuid.UUID) -> tuple[int, int]:
    """A user's bucket and tag in the compact format, made like in src/store/sessions/place.rs."""
    both = mix(mix(user.int >> 64) ^ user.int & (1 << 64) - 1) >> 32
    return both >> 18, both & (1 << 18) - 1


def is_compact(real: dict[str, str]) -> bool:
    """Whether a session is kept in the compact format: its times are seconds since the epoch."""
    return real["created_at"].isdigit()


def session_id(bits: bytes, user: uuid.UUID, compact: bool) -> str:
    """The id that these 16 bytes make, which in the compact format begins with the user's tag."""
    if compact:
        bits = (place(user)[1] << 110 | int.from_bytes(bits, "big") >> 18).to_bytes(16, "big")
    return text64(bits)


def token(secret: str, user: uuid.UUID, expires_ms: int, compact: bool) -> tuple[str, str]:
    """A cookie's value and the session's id, made like in src/auth/token.rs."""
    signed = (b"\x03" if compact else b"\x01") + user.bytes + os.urandom(32) + expires_ms.to_bytes(6, "big")
    found = session_id(hashlib.sha256(signed).digest()[:16], user, compact)
    return text64(signed + hmac.digest(secret.encode(), signed, "sha256")), found


def fill(
    redis: Redis | RedisCluster, secret: str, count: int, real: dict[str, str], keep: int
) -> tuple[list[str], list[str]]:
    """Makes `count` sessions in the format of `real`, one per user. This takes the most memory, because in the classic
    format each session has its own index. Returns the cookies and the keys of `keep` of them, evenly spread."""
    cookies, keys = [], []
    step = max(1, count // keep)
    expires_ms = int(time.time()) * 1000 + 86_400_000
    order, compact = list(real), is_compact(real)
    index_life = str(2 * 86_400_000)

    def records() -> Iterator[tuple[str, bytes]]:
        for n in range(count):
            user = uuid7()
            tag = f"{place(user)[0]:04x}" if compact else str(user)
            if n % step == 0 and len(keys) < keep:
                cookie, session = token(secret, user, expires_ms, compact)
                cookies.append(f"session={cookie}")
                keys.append(f"session:{{{tag}}}:{session}")
            else:
                session = session_id(os.urandom(16), user, compact)
            # These values differ by user, and are as long as those of the real session.
            own = {
                "user_id": str(user),
                "username": f"{n:0{len(real['username'])}d}",
                "email": f"{n:0{len(real['email']) - 12}d}@example.com",
            }
            fields = [part for name in order for part in (name, own.get(name, real[name]))]
            key, index = f"session:{{{tag}}}:{session}", f"user:{{{tag}}}:sessions"
            hash_ = encode("HSET", key, *fields) + encode("PEXPIRE", key, "1800000")
            listed = ("RPUSH", index, session) if compact else ("ZADD", index, str(expires_ms), session)
            yield tag, hash_ + encode(*listed) + encode("PEXPIRE", index, index_life)

    if isinstance(redis, RedisCluster):
        made = list(records())
        for node in redis.nodes:
            node.pipe(data for tag, data in made if redis.of(tag) is node)
    else:
        redis.pipe(data for _, data in records())
    return cookies, keys


def sample(redis: Redis, server: Server) -> tuple[str, dict[str, str]]:
    """Signs in. Returns the session's key and what the server keeps of it. There must be no other session."""
    who = {"email": "session@example.com", "password": "wombats count to three"}
    for path, expected in (("/auth/register", (201, 409)), ("/auth/login", (200,))):
        if (status := server.post(path, who)[0]) not in expected:
            raise BenchError(f"{path}: {status}")
    key = redis.cli("KEYS", "session:*")
    flat = redis.cli("HGETALL", key).splitlines()
    return key, dict(zip(flat[::2], flat[1::2], strict=True))


def same_shape(redis: Redis, server: Server, key: str, real: dict[str, str]) -> None:
    """Checks that sessions of `fill` have the encoding, size and keys of the server's, and that it accepts them. Leaves
    Redis empty."""

    def facts(key: str) -> list[object]:
        tag = re.search(r"\{(.+)\}", key).group(1)
        names = [name for name in redis.cli("KEYS", f"*{{{tag}}}*").splitlines() if not name.startswith("throttle:")]
        kinds = sorted((name.split(":")[0], redis.cli("OBJECT", "ENCODING", name)) for name in names)
        return [int(redis.cli("MEMORY", "USAGE", key)), kinds]

    theirs = facts(key)
    redis.cli("FLUSHALL")
    (cookie,), (made,) = fill(redis, server.secret, 1, real, 1)
    mine = facts(made)
    if theirs[1] != mine[1] or abs(theirs[0] - mine[0]) > 32:
        raise BenchError(f"made sessions differ from the server's: {mine} instead of {theirs}")
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.base}/profile", headers={"Cookie": cookie}), timeout=10
    ) as answer:
        if answer.status != 200:
            raise BenchError(f"the server does not accept a made session: {answer.status}")
    # It is also in its user's list, where a revocation finds it.
    request = urllib.request.Request(f"{server.base}/auth/sessions", headers={"Cookie": cookie})
    with urllib.request.urlopen(request, timeout=10) as answer:
        if len(json.load(answer)["sessions"]) != 1:
            raise BenchError("the server does not list a made session")
    redis.cli("FLUSHALL")
