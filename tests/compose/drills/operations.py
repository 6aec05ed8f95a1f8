"""Drills of what an operator does: updates, backups, a move to another machine, a fourth replica."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import tempfile

from clients import Client, Stream, User, lost
from engine import (
    PROJECT,
    REPLICAS,
    ROOT,
    SUBNET,
    compose,
    container,
    down,
    expect,
    fails,
    left_behind,
    run,
    up,
    within,
)
from table import judge


def rolling_update(users: list[User]) -> None:
    """Two rollouts bring a new cookie key and a new Redis password, without a lost request or session."""
    before = [container(replica) for replica in REPLICAS]
    old_url = "cat /secrets/server/redis-url"
    read = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "secrets", "-c")
    password = compose(*read, old_url)
    with Stream(users) as count:
        compose("run", "--rm", "-T", "--no-deps", "secrets", "stage")
        run("deploy/compose/redis-cli", "ACL", "LOAD")
        run("deploy/compose/rollout")
        after = [container(replica) for replica in REPLICAS]
        expect(not set(before) & set(after), "not every replica was replaced")
    judge("rolling update", count, users, "3 of 3 replaced, and Redis's password")
    with Stream(users) as count:
        compose("run", "--rm", "-T", "--no-deps", "secrets", "promote")
        run("deploy/compose/rollout")
    judge("rolling update: new cookie key", count, users, "3 of 3 replaced")
    expect(compose(*read, old_url) != password, "Redis's password has not changed")
    again = compose("run", "--rm", "-T", "--no-deps", "secrets", "promote", check=False)
    expect("already promoted" in again, f"promoted twice: {again}")


def backup_restore(users: list[User]) -> None:
    """A backup made while the fleet runs is restored exactly. A damaged backup is refused and changes nothing."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "users.db")
        with Stream(users) as count:
            run("deploy/compose/backup", "users", str(file))
        judge("backup of users", count, users, f"{file.stat().st_size} bytes")
        expect(file.stat().st_mode & 0o077 == 0, "other users of the machine can read the backup")

        # The restore ends every session and removes a user registered after the backup. The others can sign in.
        late = User.register("late")
        run("deploy/compose/restore", "users", str(file))
        expect(lost(users) == len(users), "sessions outlived the restore of their users")
        answer = late.sign_in()
        expect(answer.status == 401, f"a user registered after the backup: {answer.says()}")
        for user in users:
            answer = user.sign_in()
            expect(answer.status == 200, f"a restored user: {answer.says()}")
        late = User.register("later")
        expect(late.sign_in().status == 200, "a user registered after the restore can't sign in")
        file.write_bytes(b"SQLite format 3\0" + b"?" * 4096)
        with Stream(users) as count:
            out = run("deploy/compose/restore", "users", str(file), check=False)
            expect("not a users' database" in out, f"a damaged backup was accepted: {out[-400:]}")
            expect(late.sign_in().status == 200, "a refused restore has changed something")
        judge("restore of a damaged backup", count, users, "refused")


def restore_refused(users: list[User]) -> None:
    """If Redis refuses to end the sessions, or a backup is truncated, the restore fails and changes nothing."""
    with tempfile.TemporaryDirectory() as directory:
        users_file, sessions_file = pathlib.Path(directory, "users.db"), pathlib.Path(directory, "sessions.rdb")
        run("deploy/compose/backup", "users", str(users_file))
        run("deploy/compose/backup", "sessions", str(sessions_file))
        late = User.register("late")
        # From here on Redis answers every write with NOREPLICAS.
        run("deploy/compose/redis-cli", "CONFIG", "SET", "min-replicas-to-write", "1")
        try:
            answer = fails("deploy/compose/redis-cli", "FLUSHDB")
            expect("NOREPLICAS" in answer, f"Redis did not refuse FLUSHDB: {answer}")
            out = fails("deploy/compose/restore", "users", str(users_file))
        finally:
            run("deploy/compose/redis-cli", "CONFIG", "SET", "min-replicas-to-write", "0")
        expect("NOREPLICAS" in out and "nothing was restored" in out, f"the restore does not say why: {out}")
        expect("are back" not in out, f"the restore claims to have succeeded: {out}")
        expect(late.sign_in().status == 200, "a failed restore removed a user registered after the backup")
        with Stream(users) as count:
            sessions_file.write_bytes(sessions_file.read_bytes()[:-9])
            out = fails("deploy/compose/restore", "sessions", str(sessions_file))
            expect("not a sound RDB file" in out, f"a truncated backup of the sessions was accepted: {out}")
    judge("restore that Redis refuses", count, users, "refused, users and sessions as they were")


@contextlib.contextmanager
def another_project():
    """A second fleet. It uses the port of the fleet under test, whose nginx must be stopped."""
    os.environ["COMPOSE_PROJECT_NAME"] = f"{PROJECT}-moved"
    os.environ["AUTHFLEET_SUBNET"] = "10.213.66.0/24"
    # This fleet has no clients that a drain would protect.
    os.environ["DRAIN_DELAY"] = "0s"
    try:
        yield
    finally:
        down()
        rest = left_behind()
        os.environ |= {"COMPOSE_PROJECT_NAME": PROJECT, "AUTHFLEET_SUBNET": SUBNET}
        del os.environ["DRAIN_DELAY"]
        expect(not rest, f"docker compose down -v left {rest}")


def moved(users: list[User]) -> None:
    """Every session moves to another machine (here, another project), and ends there once the old key is retired."""
    with tempfile.TemporaryDirectory() as directory:
        users_file, sessions_file = f"{directory}/users.db", f"{directory}/sessions.rdb"
        compose("stop", "nginx")
        run("deploy/compose/backup", "users", users_file)
        run("deploy/compose/backup", "sessions", sessions_file)
        key = compose("run", "--rm", "-T", "--no-deps", "secrets", "export")
        with another_project():
            compose("run", "--rm", "-T", "--no-deps", "secrets", "import", stdin=key.encode())
            up()
            expect(lost(users) == len(users), "the new fleet knows sessions before they were restored")
            run("deploy/compose/restore", "users", users_file)
            run("deploy/compose/restore", "sessions", sessions_file)
            expect(lost(users) == 0, "sessions were lost in the move")
            answer = dataclasses.replace(users[0]).sign_in()
            expect(answer.status == 200, f"a user who moved: {answer.says()}")

            # As after a leak, all three steps at once. First finish a rotation that the old fleet may have begun.
            rotate = ("run", "--rm", "-T", "--no-deps", "secrets")
            compose(*rotate, "retire", check=False)
            for action in ("stage", "promote", "retire"):
                compose(*rotate, action)
            run("deploy/compose/redis-cli", "ACL", "LOAD")
            up("--no-deps", "--force-recreate", *REPLICAS)

            def refused() -> bool:
                client = Client()
                return all(client.ask("GET", "/profile", cookie=user.cookie).status == 401 for user in users)

            within(20, "cookies of the retired key are refused", refused)
            answer = dataclasses.replace(users[0]).sign_in()
            expect(answer.status == 200, f"sign-in with the new key: {answer.says()}")


def fourth_replica(users: list[User]) -> None:
    """A fourth replica, added as docs/operations.md says, gets requests."""
    upstream = (ROOT / "deploy/nginx/upstream/compose.conf").read_text()
    upstream = re.sub(r"^server replica-3(.*)$", r"\g<0>\nserver replica-4\1", upstream, flags=re.M)
    text = (ROOT / "docs/operations.md").read_text().partition("## A fourth replica")[2]
    override = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)[1]
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "upstream.conf").write_text(upstream)
        mount = f'  nginx:\n    volumes: ["{directory}/upstream.conf:/etc/nginx/upstream.conf:ro"]\n'
        pathlib.Path(directory, "override.yml").write_text(override + mount)
        files, os.environ["COMPOSE_FILE"] = os.environ["COMPOSE_FILE"], f"docker-compose.yml:{directory}/override.yml"
        try:
            up("replica-4")
            up("--force-recreate", "--no-deps", "nginx")
            with Stream(users) as count:
                within(15, "replica-4 answers", lambda: count.served_by["replica-4"] > 20)
            judge("a fourth replica", count, users, f"it answered {count.served_by['replica-4']} requests")
            compose("rm", "-sf", "replica-4")
        finally:
            os.environ["COMPOSE_FILE"] = files
            up("--force-recreate", "--no-deps", "nginx")
