"""The rule about network policies: which connections they must allow. All others are denied.

components/network-policies/README.md has the same list.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from fleet import containers, label, of_kind, pods

# All permitted connections: from, to, port. Each must be allowed at both ends, and all others denied.
CONNECTIONS = {
    ("anybody", "edge", 8080),
    ("edge", "dns", 53),
    ("edge", "server", 3000),
    ("server", "dns", 53),
    ("server", "sessions", 6379),
    ("monitoring", "server", 9464),
    ("server", "monitoring", 4318),
    ("loadtest", "dns", 53),
    ("loadtest", "server", 3000),
    ("loadtest", "edge", 8080),
}
# overlays/scale-out uses stores outside the cluster: PostgreSQL, Redis, Sentinel.
OUTSIDE = {("server", "sessions", 6379)}, {("server", "outside", port) for port in (5432, 6379, 26379)}
# components/redis-cluster: the members with each other, and the Job that makes the cluster.
CLUSTER = {
    ("server", "sessions", 6379),
    ("sessions", "sessions", 6379),
    ("sessions", "sessions", 16379),
    ("sessions-create", "dns", 53),
    ("sessions-create", "sessions", 6379),
}
# components/postgres-cnpg: the instances with each other, the operator, the API server and the object store of backups.
POSTGRES = {
    ("server", "users", 5432),
    ("users", "users", 5432),
    ("users", "users", 8000),
    ("cnpg-system", "users", 5432),
    ("cnpg-system", "users", 8000),
    ("users", "dns", 53),
    ("users", "outside", 443),
    ("users", "outside", 6443),
}
# Only components/tracing connects to the collector.
TRACES = ("server", "monitoring", 4318)
COMPONENT = "app.kubernetes.io/component"


def _peers(listed: list[dict] | None) -> set[str]:
    if not listed:
        return {"anybody"}
    found = set()
    for peer in listed:
        space = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
        pairs = peer.get("podSelector", {}).get("matchLabels", {})
        if "ipBlock" in peer:
            found.add("outside")
        elif space == "kube-system" and pairs == {"k8s-app": "kube-dns"}:
            found.add("dns")
        elif space:
            found.add(space)
        else:
            found.add(_component(pairs) or "anybody")
    return found


def _component(pairs: dict) -> str | None:
    """Which pods have these labels. Those of components/postgres-cnpg have the operator's own label."""
    return "users" if pairs == {"cnpg.io/cluster": "authfleet-postgres"} else pairs.get(COMPONENT)


def connections(objects: list[dict]) -> Iterator[str]:
    """The network policies allow exactly the permitted connections."""
    policies = of_kind(objects, "NetworkPolicy")
    if not policies:
        return
    deny = [p["spec"] for p in policies if not p["spec"]["podSelector"]]
    if deny != [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]:
        yield "NetworkPolicy: no policy denies everything by default"
    wanted = set(CONNECTIONS)
    workloads = {pairs[COMPONENT]: spec for _, pairs, spec in pods(objects)}
    if "sessions" not in workloads or "sessions-create" in workloads:
        wanted = wanted - OUTSIDE[0] | OUTSIDE[1]
    if "sessions-create" in workloads:
        wanted |= CLUSTER
    if of_kind(objects, "Cluster"):
        wanted |= POSTGRES
    settings = (thing.get("data", {}) for thing in of_kind(objects, "ConfigMap"))
    collectors = [data[name] for data in settings for name in data if name == "OTEL_EXPORTER_OTLP_ENDPOINT"]
    if not collectors:
        wanted.remove(TRACES)
    for url in collectors:
        service = urlsplit(url)
        if (service.hostname.split(".")[1:3], service.port) != ([TRACES[1], "svc"], TRACES[2]):
            yield f"NetworkPolicy: traces go to {url}, which is not {TRACES[1]} on port {TRACES[2]}"
    inside = {"edge", "server", "sessions", "sessions-create", "users", "loadtest"}
    into, out = set(), set()
    for policy in policies:
        name = _component(policy["spec"]["podSelector"].get("matchLabels", {}))
        for direction, key, edges in (("ingress", "from", into), ("egress", "to", out)):
            if direction in policy["spec"] and direction.capitalize() not in policy["spec"]["policyTypes"]:
                yield f"{label(policy)}: {direction} rules without their policyType"
            for entry in policy["spec"].get(direction, []):
                for port in entry.get("ports", [{"port": "every port"}]):
                    for peer in _peers(entry.get(key)):
                        edges.add((peer, name, port["port"]) if direction == "ingress" else (name, peer, port["port"]))
    # A rule that admits anybody also covers the other connections to the same port.
    doors = {(to, port) for source, to, port in wanted if source == "anybody"}
    for what, found, needed in (
        ("in", into, {e for e in wanted if e[1] in inside and (e[0] == "anybody" or e[1:] not in doors)}),
        ("out", out, {e for e in wanted if e[0] in inside}),
    ):
        for edge in sorted(map(str, found - needed)):
            yield f"NetworkPolicy: {edge} is allowed {what}, but is not a permitted connection"
        for edge in sorted(map(str, needed - found)):
            yield f"NetworkPolicy: {edge} is needed, but not allowed {what}"
    for _, to, port in wanted:
        ports = [
            p["containerPort"] for c in containers(workloads.get(to, {"containers": []})) for p in c.get("ports", [])
        ]
        if to in workloads and port not in ports:
            yield f"NetworkPolicy: {to} has no port {port}"
