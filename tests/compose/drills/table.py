"""Judges what a drill did to a stream of requests, and prints the figures of all drills as a table."""

from __future__ import annotations

from clients import Count, User, lost
from engine import expect

ROWS: list[tuple[str, ...]] = [
    ("drill", "checks", "failed", "sign-ins/outs", "failed", "sessions lost", "slowest", "seen")
]


def judge(
    name: str, count: Count, users: list[User], seen: str, *, checks=(), sign_ins=(), sign_ins_at_most=None
) -> None:
    """Adds a row to the table. Fails if a request failed in an unexpected way, or if a session was lost."""
    bad_checks, bad_sign_ins = count.failed(count.checks), count.failed(count.sign_ins)
    gone = lost(users)
    total = [sum(kind.values()) for kind in (count.checks, bad_checks, count.sign_ins, bad_sign_ins)]
    ROWS.append((name, *map(str, total), f"{gone} of {len(users)}", f"{count.slowest:.1f} s", seen))
    expect(total[0] > 50, f"only {total[0]} checks were made")
    expect(set(bad_checks) <= set(checks), f"checks failed: {bad_checks}, expected only: {checks or 'none'}")
    expect(set(bad_sign_ins) <= set(sign_ins), f"sign-ins failed: {bad_sign_ins}, expected only: {sign_ins or 'none'}")
    if sign_ins_at_most is not None:
        expect(total[3] <= sign_ins_at_most, f"more than {sign_ins_at_most} sign-ins failed: {bad_sign_ins}")
    expect(gone == 0, f"{gone} sessions were lost")


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
