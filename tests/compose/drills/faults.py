"""Drills that break one part of the fleet: a replica, Redis, the network, the disk."""

from __future__ import annotations

import collections
import secrets
import time

from clients import Client, Count, Stream, User, registers
from engine import PROJECT, compose, container, expect, health, run, up, within
from table import judge

DOWN = ("503 store_unavailable", "503 upstream_unavailable")
# nginx never repeats a POST that a replica may have carried out.
CUT_OFF = ("503 upstream_unavailable", "401 session_invalid")


def asked_again(count: Count, replica: str) -> float:
    """Waits until nginx passes a request to the replica, and returns the seconds."""
    before = count.served_by[replica]
    return within(15, f"{replica} gets requests again", lambda: count.served_by[replica] > before)


def replica_killed(users: list[User]) -> None:
    """When a replica is killed with kill -9, no session check fails."""
    with Stream(users) as count:
        compose("kill", "-s", "KILL", "replica-2")
        time.sleep(8)
        up("--no-deps", "replica-2")
        back = asked_again(count, "replica-2")
    # Only one client signs in, so at most two requests fail: the one in flight, and the sign-out that follows it.
    judge("replica killed", count, users, f"asked again after {back:.1f} s", sign_ins=CUT_OFF, sign_ins_at_most=2)


def replica_stopped(users: list[User]) -> None:
    """When a replica is stopped and started again, no request fails, because it drains first."""
    with Stream(users) as count:
        compose("stop", "replica-3")
        time.sleep(4)
        up("--no-deps", "replica-3")
        back = asked_again(count, "replica-3")
    judge("replica stopped, started", count, users, f"asked again after {back:.1f} s")


def redis_paused(users: list[User]) -> None:
    """While Redis is frozen for 6 s, answers are 503, never 401 or 200. Afterwards every session is valid again."""
    with Stream(users) as count:
        compose("pause", "redis")
        time.sleep(1.5)
        before = count.checks["200"]
        time.sleep(4.5)
        expect(count.checks["200"] == before, "checks were accepted while Redis was frozen")
        compose("unpause", "redis")
        back = within(10, "a session check succeeds again", lambda: count.checks["200"] > before)
        time.sleep(3)
        failures = sum(count.failed(count.checks).values())
        time.sleep(2)
        expect(sum(count.failed(count.checks).values()) == failures, "checks still fail 3 s after Redis continued")
    expect(count.failed(count.checks), "no check failed while Redis was frozen")
    judge("Redis frozen 6 s", count, users, f"first 200 after {back:.1f} s", checks=DOWN, sign_ins=DOWN)


def redis_killed(users: list[User]) -> None:
    """When Redis is killed with kill -9, it reads every session back from the AOF."""
    with Stream(users) as count:
        compose("kill", "-s", "KILL", "redis")
        time.sleep(3)
        before = count.checks["200"]
        up("--no-deps", "redis")
        back = within(15, "a session check succeeds again", lambda: count.checks["200"] > before)
        time.sleep(3)
    judge("Redis killed, started", count, users, f"first 200 after {back:.1f} s", checks=DOWN, sign_ins=DOWN)


def redis_restarted(users: list[User]) -> None:
    """A clean restart of Redis keeps every session."""
    with Stream(users) as count:
        compose("restart", "redis")
        within(15, "Redis is healthy", lambda: health("redis") == "healthy")
        time.sleep(2)
    judge("Redis restarted", count, users, "", checks=DOWN, sign_ins=DOWN)


def replica_cut_off(users: list[User]) -> None:
    """A replica that can't reach Redis answers 503, and the others serve its clients."""
    network, cut = f"{PROJECT}_store", container("replica-1")

    def directly(cookie: str) -> str:
        # Returns the status. A forged cookie is refused without asking Redis, so it gets a 401 during the outage too.
        return compose(
            *("exec", "-T", "nginx", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
            *("-H", f"Cookie: {cookie}", "http://replica-1:3000/profile"),
        )

    with Stream(users) as count:
        run("docker", "network", "disconnect", network, cut)
        within(15, "its health check fails", lambda: health("replica-1") == "unhealthy")
        alone = directly(users[0].cookie)
        expect(alone == "503", f"the replica without Redis answers a check with {alone}")
        nobody = directly("session=forged")
        expect(nobody == "401", f"the replica without Redis answers a forged cookie with {nobody}")
        run("docker", "network", "connect", "--alias", "replica-1", network, cut)
        back = within(15, "its health check succeeds", lambda: health("replica-1") == "healthy")
        alone = directly(users[0].cookie)
        expect(alone == "200", f"reconnected, the replica answers with {alone}")
    # nginx retries session checks on another replica. It never retries a sign-in, so the 503 reaches the client.
    seen = f"it answers 503; ready again after {back:.1f} s"
    judge("replica cut off from Redis", count, users, seen, sign_ins=DOWN, sign_ins_at_most=4)


def disk_full(users: list[User]) -> None:
    """While the users' volume is full, only registrations fail, with 503. They work again once there is room."""
    ballast = ("exec", "-T", "volume-holder", "sh", "-c")
    with Stream(users) as count:
        compose(*ballast, "dd if=/dev/zero of=/data/ballast bs=64k 2>/dev/null; df /data | tail -n 1")
        client, answers = Client(), collections.Counter()
        for n in range(60):
            body = {"email": f"full-{n}@example.com", "password": secrets.token_urlsafe(18)}
            answer = client.ask("POST", "/auth/register", body)
            answers[answer.says()] += 1
            if answer.status == 503:
                expect("Retry-After" in answer.headers, "the 503 has no Retry-After")
            if answers["503 store_unavailable"] >= 9:
                break
            time.sleep(0.15)
        # A registration that fits into the last page may still succeed.
        expect(set(answers) <= {"201", "503 store_unavailable"}, f"registrations: {dict(answers)}")
        expect(answers["503 store_unavailable"] >= 9, f"registrations on a full disk: {dict(answers)}")
        compose(*ballast, "rm /data/ballast")
        back = within(10, "registration works again", registers)
    judge("users' volume full", count, users, f"registrations: {dict(answers)}; 201 after {back:.1f} s")
