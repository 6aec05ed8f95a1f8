"""Tests that a backup by Litestream has all that was acknowledged before its last sync, and restores as documented."""

from __future__ import annotations

import threading

from conftest import PATIENCE, Site

PASSWORD, CHANGED = "correct horse battery staple", "another horse battery staple"


def name(number: int) -> str:
    return f"user-{number}@example.org"


def register(site: Site, number: int) -> int:
    return site.ask("POST", "/auth/register", {"email": name(number), "password": PASSWORD})[0]


def sign_in(site: Site, number: int, password: str = PASSWORD) -> tuple[int, str]:
    return site.ask("POST", "/auth/login", {"email": name(number), "password": password})


def test_a_lost_machine_costs_only_what_came_after_the_last_sync(site: Site) -> None:
    site.replicate()
    acknowledged: list[int] = []
    enough, stop = threading.Event(), threading.Event()

    def keep_registering() -> None:
        number = 0
        while not stop.is_set():
            if register(site, number) == 201:
                acknowledged.append(number)
            if len(acknowledged) == 50:
                enough.set()
            number += 1

    load = threading.Thread(target=keep_registering)
    load.start()
    assert enough.wait(PATIENCE)
    before = list(acknowledged)
    # Under load: what is acknowledged meanwhile may be in the backup or not.
    site.synced()
    # One that the backup must not know: its password changes after the program is gone, so a restore forgets that.
    status, old = sign_in(site, 0)
    assert status == 200
    site.kill_litestream()
    status, new = site.ask("POST", "/auth/password", {"current_password": PASSWORD, "new_password": CHANGED}, old)
    assert status == 200 and new
    stop.set()
    load.join()

    site.lose_the_machine()
    # The steps of docs/operations.md, "Users, continuously". Redis still has the sessions of users as they were.
    assert site.redis("FLUSHDB") == "OK"
    site.litestream("restore", "-o", str(site.database), f"file://{site.backup}")
    site.authfleet("migrate")
    site.authfleet("doctor")
    site.start_replicas()
    site.replicate()

    assert site.sqlite("PRAGMA integrity_check") == [("ok",)]
    there = {email for (email,) in site.sqlite("SELECT email FROM users")}
    assert {name(number) for number in before} <= there
    # No session is left from before, above all not that of a change which the restored users don't know.
    for cookie in (old, new):
        assert site.ask("GET", "/profile", cookie=cookie)[0] == 401
    assert sign_in(site, 0, CHANGED)[0] == 401
    status, cookie = sign_in(site, 0)
    assert status == 200 and site.ask("GET", "/profile", cookie=cookie)[0] == 200

    # The backup goes on in the same place: what comes now survives the next loss.
    assert register(site, 1_000_000) == 201
    site.synced()
    site.lose_the_machine()
    site.litestream("restore", "-o", str(site.database), f"file://{site.backup}")
    assert {name(number) for number in (*before, 1_000_000)} <= {
        email for (email,) in site.sqlite("SELECT email FROM users")
    }


def test_sessions_outlive_a_restore_that_does_not_end_them(site: Site) -> None:
    """Why the sessions end first: without that, a session that the lost password change opened would go on, for a user
    whose password is the old one again."""
    site.replicate()
    assert register(site, 0) == 201
    _, old = sign_in(site, 0)
    site.synced()
    site.kill_litestream()
    _, new = site.ask("POST", "/auth/password", {"current_password": PASSWORD, "new_password": CHANGED}, old)
    site.lose_the_machine()
    site.litestream("restore", "-o", str(site.database), f"file://{site.backup}")
    site.start_replicas()
    assert site.ask("GET", "/profile", cookie=new)[0] == 200
    assert sign_in(site, 0, CHANGED)[0] == 401
