"""Sessions that `loadtest/bench` makes directly in Redis, as the server would."""

from __future__ import annotations

import base64
import hashlib
import hmac
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


def token(secret: str, user: uuid.UUID, expires_ms: int) -> tuple[str, str]:
    """A cookie's value and the session's id, made like in src/auth/token.rs."""
    signed = b"\x01" + user.bytes + os.urandom(32) + expires_ms.to_bytes(6, "big")
    return text64(signed + hmac.digest(secret.encode(), signed, "sha256")), text64(hashlib.sha256(signed).digest()[:16])


def fill(
    redis: Redis | RedisCluster, secret: str, count: int, real: dict[str, str], keep: int
) -> tuple[list[str], list[str]]:
    """Makes `count` sessions, one per user. This takes the most memory, because each session has its own index. Returns
    the cookies and the keys of `keep` of them, evenly spread."""
    cookies, keys = [], []
    step = max(1, count // keep)
    expires_ms = int(time.time() * 1000) + 86_400_000
    order = list(real)

    def records() -> Iterator[tuple[uuid.UUID, bytes]]:
        for n in range(count):
            user = uuid7()
            if n % step == 0 and len(keys) < keep:
                cookie, session = token(secret, user, expires_ms)
                cookies.append(f"session={cookie}")
                keys.append(f"session:{{{user}}}:{session}")
            else:
                session = text64(os.urandom(16))
            # These values differ by user, and are as long as those of the real session.
            own = {
                "user_id": str(user),
                "username": f"{n:0{len(real['username'])}d}",
                "email": f"{n:0{len(real['email']) - 12}d}@example.com",
            }
            fields = [part for name in order for part in (name, own.get(name, real[name]))]
            key, index = f"session:{{{user}}}:{session}", f"user:{{{user}}}:sessions"
            hash_ = encode("HSET", key, *fields) + encode("PEXPIRE", key, "1800000")
            entry = encode("ZADD", index, str(expires_ms), session) + encode("PEXPIRE", index, str(2 * 86_400_000))
            yield user, hash_ + entry

    if isinstance(redis, RedisCluster):
        made = list(records())
        for node in redis.nodes:
            node.pipe(data for user, data in made if redis.of(str(user)) is node)
    else:
        redis.pipe(data for _, data in records())
    return cookies, keys


def same_shape(redis: Redis, server: Server, key: str, real: dict[str, str]) -> None:
    """Checks that sessions of `fill` have the encoding, size and keys of the server's, and that it accepts them."""
    user = re.search(r"\{(.+)\}", key).group(1)
    # Leave out the counts of sign-ins, which a made session doesn't have.
    mine = {k for k in redis.cli("KEYS", "*").splitlines() if user in k and not k.startswith("throttle:")}
    facts = [
        redis.cli("OBJECT", "ENCODING", key),
        int(redis.cli("MEMORY", "USAGE", key)),
        sorted(k.split(":")[0] for k in mine),
    ]
    redis.cli("FLUSHALL")
    (cookie,), (made,) = fill(redis, server.secret, 1, real, 1)
    other = [
        redis.cli("OBJECT", "ENCODING", made),
        int(redis.cli("MEMORY", "USAGE", made)),
        sorted(k.split(":")[0] for k in redis.cli("KEYS", "*").splitlines()),
    ]
    if facts[0] != other[0] or facts[2] != other[2] or abs(facts[1] - other[1]) > 32:
        raise BenchError(f"made sessions differ from the server's: {other} instead of {facts}")
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.base}/profile", headers={"Cookie": cookie}), timeout=10
    ) as answer:
        if answer.status != 200:
            raise BenchError(f"the server does not accept a made session: {answer.status}")
    redis.cli("FLUSHALL")
