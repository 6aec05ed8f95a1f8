"""Copies of the users' database, in docker-compose.yml's one-shot service users-backup: `backup` writes one to standard
output while the fleet runs, `check` says whether the one on standard input is sound, `restore` puts it in place while
no replica runs.
"""

import os
import pathlib
import shutil
import sqlite3
import sys

DATA = pathlib.Path(os.environ.get("DATA", "/data"))
USERS = DATA / "authfleet.db"
# On the volume, because /tmp is small. The leading dot avoids names that an operator may have chosen.
COPY = DATA / ".backup.db"
INCOMING = DATA / ".restore.db"


def say(text: str) -> None:
    print(text, file=sys.stderr)


def check(path: pathlib.Path) -> int:
    """The number of users in a sound database of ours; exits with what is wrong with any other."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            sys.exit(f"the database is damaged: {verdict}")
        db.execute("SELECT 1 FROM _sqlx_migrations LIMIT 1")
        users = db.execute("SELECT count(*) FROM users").fetchone()[0]
        db.close()
    except sqlite3.DatabaseError as error:
        sys.exit(f"not a users' database of authfleet: {error}")
    return users


def backup() -> None:
    if not USERS.exists():
        sys.exit(f"there is no {USERS.name} on the volume: has `migrate` run?")
    COPY.unlink(missing_ok=True)
    try:
        # Read only: this SQLite has another version than the server's and must never write to a file that replicas use.
        # One read transaction makes the copy a snapshot, and blocks no replica.
        db = sqlite3.connect(f"file:{USERS}?mode=ro", uri=True, timeout=10)
        db.execute("VACUUM INTO ?", (str(COPY),))
        db.close()
        users = check(COPY)
        with COPY.open("rb") as copy:
            shutil.copyfileobj(copy, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        say(f"{users} users, {COPY.stat().st_size} bytes")
    finally:
        COPY.unlink(missing_ok=True)


def receive() -> int:
    """Puts standard input on the volume, and counts its users."""
    with INCOMING.open("wb") as incoming:
        shutil.copyfileobj(sys.stdin.buffer, incoming)
        os.fsync(incoming.fileno())
    return check(INCOMING)


def look() -> None:
    try:
        say(f"a sound backup of {receive()} users")
    finally:
        INCOMING.unlink(missing_ok=True)


def restore() -> None:
    try:
        users = receive()
        if USERS.exists():
            # Together with its journal, which may hold the newest users, under the names that SQLite expects.
            for suffix in ("", "-wal", "-shm"):
                old = pathlib.Path(f"{USERS}{suffix}")
                kept = DATA / f"before-restore.db{suffix}"
                kept.unlink(missing_ok=True)
                if old.exists():
                    old.rename(kept)
            say("what was there is kept on the volume as before-restore.db")
        INCOMING.rename(USERS)
        directory = os.open(DATA, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        say(f"{users} users are back")
    finally:
        INCOMING.unlink(missing_ok=True)


os.umask(0o077)
actions = {"backup": backup, "check": look, "restore": restore}
if len(sys.argv) != 2 or sys.argv[1] not in actions:
    sys.exit("usage: users.py backup >FILE | check <FILE | restore <FILE")
actions[sys.argv[1]]()
