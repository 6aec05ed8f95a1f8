"""Tests an upgrade and its reverse, one replica at a time, under load: nothing fails, and nobody is signed out."""

from __future__ import annotations

from clients import CHANGED, Client, Load
from conftest import Site


def direct(site: Site) -> dict[str, Client]:
    """A client of each replica, by its name."""
    return {name: Client(port) for name, port in zip(site.fleet.replicas, site.fleet.replica_ports, strict=True)}


def sessions_cross(site: Site, phase: str, living: dict[str, str]) -> None:
    """What one replica opens, every other accepts; what one ends, every other refuses."""
    clients = direct(site)
    for opener, client in clients.items():
        email = f"{phase}-{opener}@example.org"
        assert client.register(email).status == 201
        keeps, leaves, ends = (client.sign_in(email).cookie for _ in range(3))
        for name, other in clients.items():
            for cookie in (keeps, leaves, ends):
                assert other.check(cookie).status == 200, f"{phase}: {name} refuses a session of {opener}"
        living[email] = keeps
        (ender,) = [name for name in clients if site.fleet.replicas.index(name) == (len(living) % len(clients))]
        assert clients[ender].sign_out(leaves).status == 200
        # Another user's password, because it ends all of their sessions.
        changing = f"{phase}-{opener}-changes@example.org"
        assert client.register(changing).status == 201
        old = client.sign_in(changing).cookie
        new = clients[ender].change_password(old).cookie
        for name, other in clients.items():
            assert other.check(leaves).status == 401, f"{phase}: {name} accepts a session that {ender} ended"
            assert other.check(old).status == 401, (
                f"{phase}: {name} accepts a session from before the password of {ender}"
            )
            assert other.check(new).status == 200, f"{phase}: {name} refuses the session after the password of {ender}"
            assert other.sign_in(changing, CHANGED).status == 200, f"{phase}: {name} refuses the password of {ender}"


def change_format(site: Site, load: Load, living: dict[str, str], name: str) -> None:
    """Changes the format of new sessions, one replica at a time."""
    for number, replica in enumerate(site.fleet.replicas, 1):
        site.replace(replica, "new", SESSION_FORMAT=name)
        load.until_each_answered(site.fleet.replicas)
        sessions_cross(site, f"{name}-{number}", living)


def is_compact(cookie: str) -> bool:
    """Whether a session is kept in the compact format, by the first byte of its token."""
    return cookie.partition("=")[2].startswith("Aw")


def test_an_upgrade_and_its_reverse_lose_nothing(site: Site) -> None:
    # A newer binary never serves an older schema: `migrate` comes first.
    refused = site.run(site.new, "serve")
    assert refused.returncode != 0 and "authfleet migrate" in refused.stdout + refused.stderr

    living: dict[str, str] = {}
    sessions_cross(site, "before", living)
    member = "member@example.org"
    assert Client(site.fleet.http_port).register(member).status == 201
    with Load(site.fleet.http_port, living) as load:
        load.until_each_answered(site.fleet.replicas)
        # Expand: the old replicas go on with the new schema.
        migrated = site.run(site.new, "migrate")
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
        load.until_each_answered(site.fleet.replicas)
        sessions_cross(site, "migrated", living)
        # Forwards, and back.
        for version in ("new", "old"):
            for number, replica in enumerate(site.fleet.replicas, 1):
                load.is_excused = site.version[replica] == "old"
                site.replace(replica, version)
                load.is_excused = False
                load.until_each_answered(site.fleet.replicas)
                sessions_cross(site, f"{version}-{number}", living)
            if version == "new":
                # What only the new version knows must survive the old one's writes.
                grouped = site.run(site.new, "user", "group", "add", member, "staff")
                assert grouped.returncode == 0, grouped.stdout + grouped.stderr
                living[member] = Client(site.fleet.http_port).sign_in(member).cookie
                # Once all replicas are new, the format can be changed, and back. The old version can return when no
                # compact session is left: here they are signed out, elsewhere they end at SESSION_MAX_AGE.
                change_format(site, load, living, "compact")
                change_format(site, load, living, "classic")
                compact = {email: cookie for email, cookie in living.items() if is_compact(cookie)}
                assert len(compact) >= len(site.fleet.replicas)
                for email in compact:
                    del living[email]
                load.until_living_is_read_anew()
                for cookie in compact.values():
                    assert Client(site.fleet.http_port).sign_out(cookie).status == 200
        # Its session ends with the old password, so the load doesn't check it meanwhile.
        cookie = living.pop(member)
        load.until_each_answered(site.fleet.replicas)
        living[member] = Client(site.fleet.http_port).change_password(cookie).cookie
        # The old version's `migrate`, which its rollout runs, has nothing to do. The new one finds what it left.
        assert site.run(site.old, "migrate").returncode == 0
        load.is_excused = True
        site.replace(site.fleet.replicas[0], "new")
        load.is_excused = False
        load.until_each_answered(site.fleet.replicas)
        assert "staff" in site.run(site.new, "user", "group", "list", member).stdout
    lost = [
        f"{email} at {name}"
        for name, client in direct(site).items()
        for email, cookie in living.items()
        if client.check(cookie).status != 200
    ]
    print(
        f"\n{site.engine}: {sum(load.answers.values())} requests, {len(load.wrong)} wrong; {len(living)} sessions that"
    )
    print(f"every replica must accept, {len(lost)} lost; by replica {dict(load.answers)}; {load.cut_off} POSTs cut off")
    print("by drains of the version before this one")
    errors = [line for line in site.fleet.log("nginx").read_text().splitlines() if "[error]" in line]
    assert lost == [] and load.wrong == [], "\n".join([*lost, *load.wrong[:20], *errors[-20:]])
