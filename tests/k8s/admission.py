"""What an API server refuses although the schema allows it, and what it accepts although nothing good can come of it.

Source: the validation of k8s.io/kubernetes, `pkg/apis/*/validation`, in its own words where that helps a search. Each
rule takes all objects of a render and yields what is wrong; test_refusals.py proves each with a manifest it refuses.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal

from fleet import containers, label, named, of_kind, pods

Rule = Callable[[list[dict]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def problems(objects: list[dict], rules: list[Rule] = RULES) -> list[str]:
    """Everything that the rules refuse in one render."""
    return [f"{check.__name__}: {problem}" for check in rules for problem in check(objects)]


def every_container(objects: list[dict]) -> Iterator[tuple[str, dict, dict]]:
    """Where it is, the pod's specification, the container."""
    for thing, _, spec in pods(objects):
        for container in containers(spec):
            yield f"{label(thing)} container {container.get('name')}", spec, container


# --- Names and labels ------------------------------------------------------------------------------------------------
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@rule
def names(objects):
    for thing in objects:
        name = thing["metadata"].get("name", "")
        form = {"Service": DNS_LABEL_1035, "Namespace": DNS_LABEL}.get(thing["kind"], DNS_SUBDOMAIN)
        if not isinstance(name, str) or not form.fullmatch(name) or len(name) > 253:
            yield f"{label(thing)}: invalid name"
        for key in (
            {**thing.get("data", {}), **thing.get("stringData", {})} if thing["kind"] in ("ConfigMap", "Secret") else ()
        ):
            if not CONFIG_KEY.fullmatch(key):
                yield f"{label(thing)}: invalid key {key!r}"
    for identity, count in Counter(
        (thing["apiVersion"].rpartition("/")[0], label(thing), thing["metadata"].get("namespace")) for thing in objects
    ).items():
        if count > 1:
            yield f"{identity[1]}: {count} objects of this name"
    for thing, _, spec in pods(objects):
        for what, listed in (("container", containers(spec)), ("volume", spec.get("volumes", []))):
            for item, count in Counter(entry.get("name", "") for entry in listed).items():
                if count > 1 or not DNS_LABEL.fullmatch(item):
                    yield f"{label(thing)}: {what} name {item!r} is invalid or there twice"
    for where, _, container in every_container(objects):
        ports = container.get("ports", [])
        for port in ports:
            if "name" in port and not PORT_NAME.fullmatch(port["name"]):
                yield f"{where}: invalid port name {port['name']!r}"
        for listed in ([port.get("name") for port in ports], [port["containerPort"] for port in ports]):
            if len(set(listed)) < len(listed):
                yield f"{where}: ports there twice"
        variables = [variable["name"] for variable in container.get("env", [])]
        for variable in variables:
            if not ENV_NAME.fullmatch(variable):
                yield f"{where}: invalid variable name {variable!r}"
        if len(set(variables)) < len(variables):
            yield f"{where}: a variable is there twice"


@rule
def labels(objects):
    for thing in objects:
        template = (
            thing["spec"]["template"]["metadata"] if thing["kind"] in ("Deployment", "StatefulSet", "Job") else {}
        )
        for pairs in (thing["metadata"].get("labels", {}), template.get("labels", {})):
            for key, value in pairs.items():
                prefix, _, name = key.rpartition("/")
                if not LABEL_NAME.fullmatch(name) or (prefix and not DNS_SUBDOMAIN.fullmatch(prefix)):
                    yield f"{label(thing)}: invalid label name {key!r}"
                if not isinstance(value, str) or (value and not LABEL_NAME.fullmatch(value)):
                    yield f"{label(thing)}: invalid value {value!r} of label {key}"


@rule
def namespaces(objects):
    known = {thing["metadata"]["name"] for thing in of_kind(objects, "Namespace")}
    for thing in objects:
        cluster_wide = thing["kind"] in ("Namespace", "PriorityClass")
        if not cluster_wide and thing["metadata"].get("namespace") not in known:
            yield f"{label(thing)}: namespace {thing['metadata'].get('namespace')} is not among the objects"


@rule
def ranges(objects):
    """Numbers and words that the schema has as any integer, any string."""
    for thing in of_kind(objects, "PriorityClass"):
        if thing["value"] > 1_000_000_000:
            yield f"{label(thing)}: value above 1000000000 is reserved for the system"
    for thing in of_kind(objects, "HorizontalPodAutoscaler"):
        if not 1 <= thing["spec"].get("minReplicas", 1) <= thing["spec"]["maxReplicas"]:
            yield f"{label(thing)}: minReplicas above maxReplicas"
    for thing in of_kind(objects, "Deployment"):
        rolling = thing["spec"].get("strategy", {}).get("rollingUpdate", {})
        if {str(rolling.get(key, 1)).rstrip("%") for key in ("maxSurge", "maxUnavailable")} == {"0"}:
            yield f"{label(thing)}: maxSurge and maxUnavailable may not both be 0"
    for thing in of_kind(objects, "PodDisruptionBudget"):
        if len({"minAvailable", "maxUnavailable"} & set(thing["spec"])) != 1:
            yield f"{label(thing)}: either minAvailable or maxUnavailable"
    for thing in of_kind(objects, "Service"):
        for port in thing["spec"].get("ports", []):
            if not 1 <= port["port"] <= 65535 or ("name" not in port and len(thing["spec"]["ports"]) > 1):
                yield f"{label(thing)}: port out of range or without a name"
    for thing, _, spec in pods(objects):
        grace = spec.get("terminationGracePeriodSeconds", 30)
        for container in containers(spec):
            if not 0 < container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 1) <= grace:
                yield f"{label(thing)}: preStop sleeps longer than terminationGracePeriodSeconds"
            for port in container.get("ports", []):
                if not 1 <= port["containerPort"] <= 65535:
                    yield f"{label(thing)}: containerPort {port['containerPort']} out of range"


WORDS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "protocol": {"TCP", "UDP", "SCTP", "HTTP", "HTTPS"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "pathType": {"Prefix", "Exact", "ImplementationSpecific"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "policyTypes": {"Ingress", "Egress"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
}


@rule
def words(objects):
    """Fields with a fixed set of words."""

    def walk(where: str, node: object) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(where, item)
        elif isinstance(node, dict):
            for key, value in node.items():
                for word in (value if isinstance(value, list) else [value]) if key in WORDS else ():
                    if word not in WORDS[key]:
                        yield f"{where}: unknown {key} {word!r}"
                yield from walk(where, value)

    for thing in objects:
        if thing["kind"] not in ("ConfigMap", "Secret"):
            yield from walk(label(thing), thing.get("spec", {}))
    for thing, _, spec in pods(objects):
        allowed = {"Never", "OnFailure"} if thing["kind"] == "Job" else {"Always"}
        if spec.get("restartPolicy", "Always") not in allowed:
            yield f"{label(thing)}: restartPolicy {spec.get('restartPolicy')} not in {sorted(allowed)}"
    for thing in of_kind(objects, "Service"):
        if thing["spec"].get("type", "ClusterIP") not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
            yield f"{label(thing)}: unknown type"


# --- Resources -------------------------------------------------------------------------------------------------------
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[+-]?[0-9]+)?")
FACTORS = {"": 1, "m": Decimal("0.001")}
FACTORS |= {suffix: 1000**power for power, suffix in enumerate("kMGTPE", 1)}
FACTORS |= {f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTPE", 1)}


def quantity(value: object) -> Decimal | None:
    """A Kubernetes quantity as a number, None where it is none."""
    if isinstance(value, bool):
        return None
    found = QUANTITY.fullmatch(str(value))
    if not found:
        return None
    number, suffix = Decimal(found[1]), found[2] or ""
    return number.scaleb(int(suffix[1:])) if suffix[:1] == "e" else number * FACTORS[suffix]


@rule
def quantities(objects):
    for where, _, container in every_container(objects):
        resources = container.get("resources", {})
        for part in ("requests", "limits"):
            for name, value in resources.get(part, {}).items():
                if quantity(value) is None:
                    yield f"{where}: {part}.{name} {value!r} is no quantity"
                elif name == "cpu" and quantity(value) % Decimal("0.001"):
                    yield f"{where}: {part}.cpu {value!r} is finer than 1m"
                elif name == "memory" and quantity(value) % 1:
                    yield f"{where}: {part}.memory {value!r} is a fraction of a byte"
        for name, value in resources.get("requests", {}).items():
            limit = resources.get("limits", {}).get(name)
            if None not in (limit, quantity(value), quantity(limit)) and quantity(value) > quantity(limit):
                yield f"{where}: requests.{name} {value} above its limit {limit}"
    claims = of_kind(objects, "PersistentVolumeClaim")
    for thing in of_kind(objects, "StatefulSet"):
        claims += thing["spec"].get("volumeClaimTemplates", [])
    for claim in claims:
        storage = claim["spec"].get("resources", {}).get("requests", {}).get("storage")
        if not quantity(storage):
            yield f"{claim['metadata']['name']}: storage {storage!r} is no quantity above 0"
        if not claim["spec"].get("accessModes"):
            yield f"{claim['metadata']['name']}: at least 1 access mode is required"
    for thing, _, spec in pods(objects):
        for volume in spec.get("volumes", []):
            size = (volume.get("emptyDir") or {}).get("sizeLimit", 1)
            if quantity(size) is None:
                yield f"{label(thing)}: sizeLimit {size!r} is no quantity"


# --- Volumes and what they refer to ----------------------------------------------------------------------------------
@rule
def mounts(objects):
    for thing, _, spec in pods(objects):
        volumes = {volume.get("name") for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])}
        for volume in spec.get("volumes", []):
            if len(volume) != 2:
                yield f"{label(thing)}: volume {volume.get('name')} needs exactly one source"
        used = set()
        for container in containers(spec):
            listed = container.get("volumeMounts", [])
            used |= {mount["name"] for mount in listed}
            for mount in listed:
                if mount["name"] not in volumes:
                    yield f"{label(thing)}: volumeMount {mount['name']} of {container['name']} without its volume"
                if not mount["mountPath"].startswith("/") or ":" in mount["mountPath"]:
                    yield f"{label(thing)}: mountPath {mount['mountPath']!r} is not absolute"
            paths = [mount["mountPath"] for mount in listed]
            if len(set(paths)) < len(paths):
                yield f"{label(thing)} container {container.get('name')}: a mountPath is there twice"
        if volumes - used:
            yield f"{label(thing)}: volumes {sorted(map(str, volumes - used))} are mounted nowhere"


@rule
def references(objects):
    """Objects that are named exist. Secrets are not among the manifests: test_secrets.py has them."""
    by_kind = {kind: {t["metadata"]["name"] for t in of_kind(objects, kind)} for kind in {t["kind"] for t in objects}}

    def missing(thing: dict, kind: str, name: str | None) -> Iterator[str]:
        if name is not None and name not in by_kind.get(kind, ()):
            yield f"{label(thing)}: {kind} {name} does not exist"

    for thing, _, spec in pods(objects):
        yield from missing(thing, "ServiceAccount", spec.get("serviceAccountName"))
        yield from missing(thing, "PriorityClass", spec.get("priorityClassName"))
        for volume in spec.get("volumes", []):
            yield from missing(thing, "PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName"))
            config = volume.get("configMap", {})
            yield from missing(thing, "ConfigMap", config.get("name"))
            for item in config.get("items", []):
                data = [t["data"] for t in of_kind(objects, "ConfigMap") if t["metadata"]["name"] == config["name"]]
                if data and item["key"] not in data[0]:
                    yield f"{label(thing)}: ConfigMap {config['name']} has no key {item['key']}"
        for container in containers(spec):
            for source in container.get("envFrom", []):
                yield from missing(thing, "ConfigMap", source.get("configMapRef", {}).get("name"))
        if thing["kind"] == "StatefulSet":
            yield from missing(thing, "Service", thing["spec"].get("serviceName"))
    for thing in of_kind(objects, "HorizontalPodAutoscaler"):
        target = thing["spec"]["scaleTargetRef"]
        yield from missing(thing, target["kind"], target["name"])


# --- Containers ------------------------------------------------------------------------------------------------------
HANDLERS = {"exec", "httpGet", "tcpSocket", "grpc"}
IMAGE = re.compile(r"[a-z0-9]+([._/:-]+[a-z0-9]+)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?")


@rule
def probes(objects):
    for where, _, container in every_container(objects):
        ports = {port.get("name") for port in container.get("ports", [])}
        ports |= {port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind)
            if probe is None:
                continue
            handlers = HANDLERS & set(probe)
            if len(handlers) != 1:
                yield f"{where}: {kind} has {len(handlers)} handlers"
            for handler in handlers - {"exec"}:
                if probe[handler].get("port") not in ports:
                    yield f"{where}: {kind} asks port {probe[handler].get('port')}, which the container does not have"
            if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
                yield f"{where}: successThreshold of a {kind} must be 1"
            if min(probe.get(key, 1) for key in ("periodSeconds", "timeoutSeconds", "failureThreshold")) < 1:
                yield f"{where}: {kind} has a number below 1"
    for thing, _, spec in pods(objects):
        for container in spec.get("initContainers", []):
            if container.get("restartPolicy") != "Always" and any(k.endswith("Probe") for k in container):
                yield f"{label(thing)}: an init container may have no probes"


@rule
def images(objects):
    for where, _, container in every_container(objects):
        if not IMAGE.fullmatch(str(container.get("image", ""))):
            yield f"{where}: invalid image {container.get('image')!r}"


@rule
def users(objects):
    for where, spec, container in every_container(objects):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        if context.get("runAsNonRoot") and context.get("runAsUser") == 0:
            yield f"{where}: runAsNonRoot with the user 0 never starts"
        if context.get("allowPrivilegeEscalation") is False and context.get("privileged"):
            yield f"{where}: privileged without allowPrivilegeEscalation"


# --- Selectors -------------------------------------------------------------------------------------------------------
def matches(selector: dict, pairs: dict) -> bool:
    """Whether a label selector (matchLabels alone is in use here) or a Service's plain one takes these labels."""
    assert "matchExpressions" not in selector, "matchExpressions are not understood here"
    return selector.get("matchLabels", selector).items() <= pairs.items()


@rule
def selectors(objects):
    for thing, pairs, spec in pods(objects):
        if thing["kind"] != "Job" and not matches(thing["spec"]["selector"], pairs):
            yield f"{label(thing)}: selector does not match its template's labels"
        affinity = (
            spec.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        for term in [*affinity, *spec.get("topologySpreadConstraints", [])]:
            if not matches(term["labelSelector"], pairs):
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
def network_policies(objects):
    for thing in of_kind(objects, "NetworkPolicy"):
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            entries = thing["spec"].get(direction, [])
            if entries and direction.capitalize() not in thing["spec"].get("policyTypes", []):
                yield f"{label(thing)}: {direction} rules without the policyType"
            for entry in entries:
                for peer in entry.get(peers, []):
                    if not peer or ("ipBlock" in peer and len(peer) > 1):
                        yield f"{label(thing)}: a peer is ipBlock or selectors, not both, not neither"
                    try:
                        ipaddress.ip_network(peer.get("ipBlock", {}).get("cidr", "::/0"))
                    except ValueError as error:
                        yield f"{label(thing)}: {error}"


@rule
def ways_in(objects):
    """Ingress and HTTPRoute lead to a port of a Service, and to a listener that exists."""
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
