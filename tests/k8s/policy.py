"""Rules about what an API server accepts and this project doesn't: broken references, and the project's own rules.

Each rule takes all objects of a render and yields the problems. test_refusals.py has a broken manifest for each rule.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from connections import connections
from fleet import ROOT, containers, label, named, of_kind, pods

Rule = Callable[[list[dict]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def problems(objects: list[dict]) -> list[str]:
    """All problems in one render. Most rules follow references, so broken references are reported alone."""
    found = [f"references: {problem}" for problem in references(objects)]
    return found or [f"{check.__name__}: {problem}" for check in RULES for problem in check(objects)]


def every_container(objects: list[dict]) -> Iterator[tuple[str, dict, dict]]:
    """Yields each container's place (for messages), its pod's specification, and the container."""
    for thing, _, spec in pods(objects):
        for container in containers(spec):
            yield f"{label(thing)} container {container.get('name')}", spec, container


def matches(selector: dict, pairs: dict) -> bool:
    """Whether a label selector (only matchLabels is supported) or a Service's plain selector matches these labels."""
    assert "matchExpressions" not in selector, "matchExpressions are not supported here"
    return selector.get("matchLabels", selector).items() <= pairs.items()


# --- References ------------------------------------------------------------------------------------------------------
@rule
def references(objects):
    """Every named object, key and volume exists. Secrets are not in the manifests; test_credentials.py checks them."""
    there = {(thing["kind"], thing["metadata"]["name"]): thing for thing in objects}

    def missing(thing: dict, kind: str, name: str | None) -> Iterator[str]:
        if name is not None and (kind, name) not in there:
            yield f"{label(thing)}: {kind} {name} does not exist"

    for thing in objects:
        if thing["kind"] not in ("Namespace", "PriorityClass"):
            yield from missing(thing, "Namespace", thing["metadata"].get("namespace", "default"))
    for thing, _, spec in pods(objects):
        yield from missing(thing, "ServiceAccount", spec.get("serviceAccountName"))
        yield from missing(thing, "PriorityClass", spec.get("priorityClassName"))
        volumes = {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])}
        for volume in spec.get("volumes", []):
            volumes.add(volume["name"])
            yield from missing(thing, "PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName"))
            config = volume.get("configMap", {})
            # credentials.py makes the optional ones; test_credentials.py checks them.
            if not config.get("optional"):
                yield from missing(thing, "ConfigMap", config.get("name"))
            data = there.get(("ConfigMap", config.get("name")), {}).get("data", {})
            for key in {item["key"] for item in config.get("items", [])} - set(data):
                yield f"{label(thing)}: ConfigMap {config['name']} has no key {key}"
        mounted = {mount["name"] for container in containers(spec) for mount in container.get("volumeMounts", [])}
        if mounted != volumes:
            yield f"{label(thing)}: volume or mount without the other: {sorted(mounted ^ volumes)}"
        for container in containers(spec):
            for source in container.get("envFrom", []):
                yield from missing(thing, "ConfigMap", source.get("configMapRef", {}).get("name"))
        if thing["kind"] == "StatefulSet":
            yield from missing(thing, "Service", thing["spec"].get("serviceName"))
    for thing in of_kind(objects, "HorizontalPodAutoscaler"):
        target = thing["spec"]["scaleTargetRef"]
        yield from missing(thing, target["kind"], target["name"])


@rule
def ports_and_selectors(objects):
    """Each selector matches exactly one workload, and each port that is used is a container's port."""
    for where, _, container in every_container(objects):
        known = {port.get(key) for port in container.get("ports", []) for key in ("name", "containerPort")}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            for handler in container.get(kind, {}).values():
                if isinstance(handler, dict) and "port" in handler and handler["port"] not in known:
                    yield f"{where}: {kind} uses port {handler['port']}, which the container does not have"
    for thing, pairs, spec in pods(objects):
        affinity = spec.get("affinity", {}).get("podAffinity", {})
        terms = [
            *affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []),
            *spec.get("topologySpreadConstraints", []),
        ]
        if not all(matches(term["labelSelector"], pairs) for term in terms):
            yield f"{label(thing)}: affinity or spread selector does not match its own pods"
    for thing in of_kind(objects, "Service", "PodDisruptionBudget", "PodMonitor"):
        found = [spec for _, pairs, spec in pods(objects) if matches(thing["spec"]["selector"], pairs)]
        if len(found) != 1:
            yield f"{label(thing)}: selector matches {len(found)} workloads, not one"
            continue
        ports = [port for container in containers(found[0]) for port in container.get("ports", [])]
        wanted = {port.get("targetPort", port["port"]) for port in thing["spec"].get("ports", [])}
        wanted |= {endpoint["port"] for endpoint in thing["spec"].get("podMetricsEndpoints", [])}
        missing = wanted - {port.get("name") for port in ports} - {port["containerPort"] for port in ports}
        if missing:
            yield f"{label(thing)}: no container has the ports {sorted(map(str, missing))}"


@rule
def ways_in(objects):
    """Each Ingress and HTTPRoute names an existing port of a Service; each HTTPRoute names an existing listener."""
    services = {thing["metadata"]["name"]: thing["spec"]["ports"] for thing in of_kind(objects, "Service")}

    def lacks(name: str, port: object) -> bool:
        return port not in [p for entry in services.get(name, []) for p in (entry["port"], entry.get("name"))]

    for thing in of_kind(objects, "Ingress"):
        hosts = {host for entry in thing["spec"].get("tls", []) for host in entry.get("hosts", [])}
        for entry in thing["spec"].get("rules", []):
            if entry.get("host") not in hosts:
                yield f"{label(thing)}: host {entry.get('host')} without TLS"
            for path in entry["http"]["paths"]:
                service = path["backend"]["service"]
                if lacks(service["name"], next(iter(service["port"].values()))):
                    yield f"{label(thing)}: no Service {service['name']} with port {service['port']}"
    for thing in of_kind(objects, "HTTPRoute"):
        for parent in thing["spec"].get("parentRefs", []):
            listeners = named(objects, "Gateway", parent["name"])["spec"]["listeners"]
            found = [entry for entry in listeners if entry["name"] == parent.get("sectionName")]
            if not found or not {found[0]["hostname"]} >= set(thing["spec"]["hostnames"]):
                yield f"{label(thing)}: no listener {parent.get('sectionName')} for its host in {parent['name']}"
        for entry in thing["spec"]["rules"]:
            for backend in entry.get("backendRefs", []):
                if lacks(backend["name"], backend["port"]):
                    yield f"{label(thing)}: no Service {backend['name']} with port {backend['port']}"


# --- The project's own rules -----------------------------------------------------------------------------------------


@rule
def full_labels(objects):
    wanted = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "part-of", "managed-by")}
    for thing in objects:
        if missing := wanted - set(thing["metadata"].get("labels", {})):
            yield f"{label(thing)}: lacks the labels {sorted(missing)}"
    for thing, pairs, spec in pods(objects):
        if missing := wanted - set(pairs):
            yield f"{label(thing)}: its pods lack the labels {sorted(missing)}"
        tag = spec["containers"][0]["image"].rpartition(":")[2]
        for found in (pairs, thing["metadata"]["labels"]):
            if found.get("app.kubernetes.io/version") != tag:
                yield f"{label(thing)}: version label {found.get('app.kubernetes.io/version')}, image tag {tag}"


@rule
def restricted(objects):
    """Pods meet the Pod Security Standard restricted, and have no token, writable root filesystem or service links."""
    namespace = of_kind(objects, "Namespace")[0]["metadata"]["labels"]
    if namespace.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "Namespace: Pod Security restricted is not enforced"
    for thing, _, spec in pods(objects):
        if set(spec) & {"hostNetwork", "hostPID", "hostIPC"}:
            yield f"{label(thing)}: shares a namespace of its node"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{label(thing)}: gets a service account token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{label(thing)}: gets a variable for each Service of the namespace"
        context = spec.get("securityContext", {})
        if not (context.get("runAsNonRoot") is True and context.get("runAsUser", 0) >= 10000):
            yield f"{label(thing)}: may run as root or as a user of the node"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{label(thing)}: no seccomp profile"
        for volume in spec.get("volumes", []):
            if not set(volume) & {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}:
                yield f"{label(thing)}: restricted forbids the type of volume {volume['name']}"
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for where, _, container in every_container(objects):
        if container.get("securityContext") != wanted:
            yield f"{where}: securityContext is not exactly {wanted}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: hostPort"


@rule
def resources(objects):
    for where, _, container in every_container(objects):
        for part in ("requests", "limits"):
            if set(container.get("resources", {}).get(part, {})) < {"cpu", "memory"}:
                yield f"{where}: no {part} for CPU and memory"


@rule
def pinned(objects):
    """Each image has a full version, the same wherever it is used."""
    seen: dict[str, set] = {}
    for where, _, container in every_container(objects):
        name, _, tag = container["image"].rpartition(":")
        seen.setdefault(name, set()).add(tag)
        if not re.match(r"\d+\.\d+\.\d+(-|$)", tag) or "/" in tag:
            yield f"{where}: image {container['image']} has no full version"
    for name, tags in seen.items():
        if len(tags) > 1:
            yield f"{name}: several versions: {sorted(tags)}"
    crate = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    if seen.get("authfleet") != {crate}:
        yield f"authfleet: images {seen.get('authfleet')}, but the crate is {crate}"


@rule
def probed(objects):
    for thing, _, spec in pods(objects):
        if thing["kind"] == "Job":
            continue
        for container in spec["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind not in container:
                    yield f"{label(thing)}: no {kind}"
                elif "ops" in str(container.get("ports")) and container[kind].get("httpGet", {}).get("port") != "ops":
                    yield f"{label(thing)}: {kind} does not use the ops port"
            asked = container.get("livenessProbe", {}).get("httpGet", {}).get("path", "/livez")
            if asked != "/livez":
                yield f"{label(thing)}: liveness checks {asked}: a failing store would restart every replica"


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@rule
def rollouts(objects):
    """A replica is stopped only after its replacement is ready, and has time to drain."""
    for thing in of_kind(objects, "Deployment"):
        rolling = thing["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0:
            yield f"{label(thing)}: maxUnavailable is not 0"
    for where, spec, container in every_container(objects):
        if container["name"] == "server":
            sources = [source["configMapRef"]["name"] for source in container["envFrom"]]
            config = next(t["data"] for t in of_kind(objects, "ConfigMap") if t["metadata"]["name"] in sources)
            nginx = next(t["data"]["nginx.conf"] for t in of_kind(objects, "ConfigMap") if "nginx.conf" in t["data"])
            idle = re.search(r"keepalive \d+;\s+keepalive_timeout (\d+)s;", nginx)[1]
            if int(idle) >= _seconds(config["DRAIN_DELAY"]):
                yield f"{where}: nginx keeps idle connections until a drain ends them, and may just send a POST"
            needed = _seconds(config["DRAIN_DELAY"]) + _seconds(config["DRAIN_TIMEOUT"]) + 5
        elif container["name"] == "nginx":
            config = next(t["data"] for t in of_kind(objects, "ConfigMap") if "nginx.conf" in t.get("data", {}))
            drain = re.search(r"worker_shutdown_timeout (\d+)s;", config["nginx.conf"])[1]
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
            if not sleep:
                yield f"{where}: stops before its endpoint is removed"
            needed = (sleep or 0) + int(drain) + 5
        else:
            continue
        if spec.get("terminationGracePeriodSeconds", 30) < needed:
            yield f"{where}: terminationGracePeriodSeconds below the {needed} s that draining may take"
    budgets = of_kind(objects, "PodDisruptionBudget")
    for thing, pairs, spec in pods(objects):
        covering = [budget for budget in budgets if matches(budget["spec"]["selector"], pairs)]
        if thing["kind"] != "Job" and len(covering) != 1:
            yield f"{label(thing)}: {len(covering)} PodDisruptionBudgets"
        # Pods that need Redis become unready with it. With AlwaysAllow, a drain that evicts Redis could evict them all.
        probes = str([container.get("readinessProbe") for container in containers(spec)])
        if "/readyz" in probes and "AlwaysAllow" in {b["spec"].get("unhealthyPodEvictionPolicy") for b in covering}:
            yield f"{label(thing)}: its budget allows evicting unready pods, which are all of them when a store is down"
    scaled = {thing["spec"]["scaleTargetRef"]["name"] for thing in of_kind(objects, "HorizontalPodAutoscaler")}
    for thing in of_kind(objects, "Deployment"):
        if (thing["metadata"]["name"] in scaled) == ("replicas" in thing["spec"]):
            yield f"{label(thing)}: either the autoscaler or the manifest must set the count, not both or neither"


@rule
def one_node_with_sqlite(objects):
    """Pods that share a claim are on one node, and the claim is ReadWriteOnce. Pods without a claim may spread."""
    for thing, _, spec in pods(objects):
        claims = [volume for volume in spec.get("volumes", []) if "persistentVolumeClaim" in volume]
        terms = (
            spec.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        together = any(term["topologyKey"] == "kubernetes.io/hostname" for term in terms)
        if bool(claims) != together:
            yield f"{label(thing)}: a shared volume and one node for all pods need each other"
    for claim in of_kind(objects, "PersistentVolumeClaim"):
        if claim["spec"]["accessModes"] != ["ReadWriteOnce"]:
            yield f"{label(claim)}: SQLite in WAL mode must stay on one node: ReadWriteOnce"


@rule
def variables(objects):
    """Only variables that authfleet reads are set, secrets come from files, and each of these files is mounted."""
    table = (ROOT / ".env.example").read_text()
    known = set(re.findall(r"^#([A-Z0-9_]+)=", table, re.MULTILINE))
    secret = set(re.findall(r"^# Secret: ([A-Z0-9_]+)_FILE ", table, re.MULTILINE))
    assert secret <= known and "SESSION_SECRET" in secret, secret
    for where, spec, container in every_container(objects):
        if not container["image"].startswith("authfleet:"):
            continue
        given = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        for source in container.get("envFrom", []):
            name = source["configMapRef"]["name"]
            given |= next(t["data"] for t in of_kind(objects, "ConfigMap") if t["metadata"]["name"] == name)
        for name, value in given.items():
            # DATABASE_URL may be secret, but a path of SQLite's file isn't.
            is_secret = name in secret and not str(value).startswith("sqlite://")
            if known.isdisjoint({name, name.removesuffix("_FILE")}) or is_secret:
                yield f"{where}: variable {name} is unknown, or a secret that must come from a file"
            # A value from elsewhere is in the optional ConfigMap of certificates, which test_manifests.py checks.
            if name.endswith("_FILE") and value is not None and value not in _secret_files(spec, container):
                yield f"{where}: {name} names {value}, which is not mounted"


def _secret_files(spec: dict, container: dict) -> set[str]:
    volumes = {volume["name"]: volume.get("secret", {}) for volume in spec.get("volumes", [])}
    return {
        f"{mount['mountPath']}/{item['path']}"
        for mount in container.get("volumeMounts", [])
        for item in volumes.get(mount["name"], {}).get("items", [])
    }


@rule
def no_secrets(objects):
    for thing in of_kind(objects, "Secret"):
        yield f"{label(thing)}: the manifests must not contain secrets"


rule(connections)


@rule
def series_name_their_replica(objects):
    """The label `replica` is the same on a series and on its target. Dashboards and alerts join series by it."""
    for thing in of_kind(objects, "PodMonitor"):
        if thing["spec"].get("jobLabel") != "app.kubernetes.io/name":
            yield f"{label(thing)}: the job is not named after the pods' app.kubernetes.io/name"
        for endpoint in thing["spec"]["podMetricsEndpoints"]:
            if endpoint.get("honorLabels") is not True:
                yield f"{label(thing)}: the target's label replica replaces that of the series"
            wanted = {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "replica"}
            if wanted not in endpoint.get("relabelings", []):
                yield f"{label(thing)}: the target lacks the label replica with the pod's name"
    for where, _, container in every_container(objects):
        sources = {variable["name"]: variable.get("valueFrom") for variable in container.get("env", [])}
        if container["name"] == "server" and sources.get("REPLICA_ID") != {"fieldRef": {"fieldPath": "metadata.name"}}:
            yield f"{where}: REPLICA_ID is not the pod's name"


@rule
def used_once(objects):
    """Every ConfigMap is used, so no stale copy remains. Grafana's sidecar uses those with its label."""
    used = Counter()
    for _, _, spec in pods(objects):
        used.update(volume.get("configMap", {}).get("name") for volume in spec.get("volumes", []))
        for container in containers(spec):
            used.update(source["configMapRef"]["name"] for source in container.get("envFrom", []))
    for thing in of_kind(objects, "ConfigMap"):
        if (
            thing["metadata"]["name"] not in used
            and thing["metadata"].get("labels", {}).get("grafana_dashboard") != "1"
        ):
            yield f"{label(thing)}: used nowhere"
