"""Tests each rule with a manifest that is broken in one place and must be refused for that reason."""

import copy
from collections.abc import Callable

import pytest

import policy
import schema
from fleet import full, named, unreadable

SERVER, NGINX, REDIS, JOB = (
    ("Deployment", "authfleet-server"),
    ("Deployment", "authfleet-nginx"),
    ("StatefulSet", "authfleet-redis"),
    ("Job", "authfleet-sharing"),
)
CONTAINER = "spec.template.spec.containers.0"
POD = "spec.template.spec"
DELETE = object()


def refusals(objects: list[dict]) -> list[str]:
    # The rules run only on what the schemas accept, so they need not handle invalid shapes.
    return schema.problems(objects) or policy.problems(objects)


def put(which: tuple[str, str], path: str, value: object) -> Callable[[list[dict]], None]:
    """Sets or deletes what is at a path, or appends to a list whose path ends in `+`."""

    def change(objects: list[dict]) -> None:
        node, *keys = named(objects, *which), *path.split(".")
        keys = [int(key) if key.isdigit() else key.replace("|", ".") for key in keys]
        for key in keys[:-1]:
            node = node[key]
        if value is DELETE:
            del node[keys[-1]]
        elif keys[-1] == "+":
            node.append(value)
        else:
            node[keys[-1]] = value

    return change


def twice(which: tuple[str, str]) -> Callable[[list[dict]], None]:
    return lambda objects: objects.append(copy.deepcopy(named(objects, *which)))


def swap(which: tuple[str, str], path: str, old: str, new: str) -> Callable[[list[dict]], None]:
    def change(objects: list[dict]) -> None:
        node, *keys = named(objects, *which), *path.split(".")
        for key in keys[:-1]:
            node = node[int(key) if key.isdigit() else key]
        assert old in node[keys[-1]]
        node[keys[-1]] = node[keys[-1]].replace(old, new)

    return change


NP = "NetworkPolicy"
SVC = ("Service", "authfleet")
# What is wrong, how to make it wrong, and words that the message must contain.
MUTANTS = [
    # The schemas
    ("unknown field", put(SERVER, f"{CONTAINER}.imagePulPolicy", "Always"), "imagePulPolicy"),
    ("unknown field deep down", put(SERVER, f"{POD}.securityContext.runAsRoot", True), "runAsRoot"),
    (
        "unknown field of a custom resource",
        put(("PodMonitor", "authfleet"), "spec.podMetricsEndpoint", []),
        "podMetricsEndpoint",
    ),
    ("unknown field of a route", put(("HTTPRoute", "authfleet"), "spec.hosts", []), "hosts"),
    (
        "unknown field of a rule",
        put(("PrometheusRule", "authfleet"), "spec.groups.0.rules.0.expression", "1"),
        "expression",
    ),
    (
        "removed API version",
        put(("HorizontalPodAutoscaler", "authfleet-server"), "apiVersion", "autoscaling/v2beta2"),
        "has no Horiz",
    ),
    ("API group that never was", put(("Ingress", "authfleet"), "apiVersion", "extensions/v1beta1"), "has no Ingress"),
    ("kind without a schema", put(("PodMonitor", "authfleet"), "kind", "PodMonitors"), "has no PodMonitors"),
    (
        "custom resource of another version",
        put(("HTTPRoute", "authfleet"), "apiVersion", "gateway.networking.k8s.io/v1beta1"),
        "has no",
    ),
    ("`yes`, a boolean, in a variable", put(SERVER, f"{CONTAINER}.env.0.value", True), "True"),
    ("`on`, a boolean, in a ConfigMap", put(("ConfigMap", "authfleet-server"), "data.COOKIE_SECURE", True), "True"),
    ("number in an argument", put(REDIS, f"{CONTAINER}.args.0", 6379), "6379"),
    ("boolean in a label", put(SERVER, "metadata.labels.extra", False), "False"),
    ("missing field", put(SERVER, "spec.selector", DELETE), "selector"),
    # References
    ("missing namespace", put(SVC, "metadata.namespace", "other"), "Namespace other does not exist"),
    ("no namespace", put(SVC, "metadata.namespace", DELETE), "Namespace default does not exist"),
    (
        "volumeMount without its volume",
        put(SERVER, f"{POD}.volumes.0.name", "date"),
        "without the other: ['data', 'date']",
    ),
    (
        "volume mounted nowhere",
        put(NGINX, f"{POD}.volumes.+", {"name": "x", "emptyDir": {}}),
        "without the other: ['x']",
    ),
    (
        "missing ConfigMap",
        put(NGINX, f"{POD}.volumes.0.configMap.name", "nginx"),
        "ConfigMap nginx does not exist",
    ),
    ("missing key", put(JOB, f"{POD}.volumes.0.configMap.items.0.key", "share.js"), "no key share.js"),
    (
        "missing claim",
        put(SERVER, f"{POD}.volumes.0.persistentVolumeClaim.claimName", "x"),
        "PersistentVolumeClaim x",
    ),
    ("missing account", put(SERVER, f"{POD}.serviceAccountName", "x"), "ServiceAccount x"),
    ("missing priority", put(SERVER, f"{POD}.priorityClassName", "x"), "PriorityClass x"),
    (
        "missing variables",
        put(SERVER, f"{CONTAINER}.envFrom.0.configMapRef.name", "authfleet"),
        "ConfigMap authfleet does",
    ),
    (
        "missing target",
        put(("HorizontalPodAutoscaler", "authfleet-server"), "spec.scaleTargetRef.name", "x"),
        "Deployment x",
    ),
    (
        "probe of a port by an unknown name",
        put(SERVER, f"{CONTAINER}.livenessProbe.httpGet.port", "metrics"),
        "does not have",
    ),
    (
        "probe of a port by an unknown number",
        put(SERVER, f"{CONTAINER}.livenessProbe.httpGet.port", 9465),
        "does not have",
    ),
    # Ports, selectors, ways in
    (
        "selector that matches nothing",
        put(SVC, "spec.selector.app|kubernetes|io/component", "x"),
        "matches 0 workloads",
    ),
    ("selector of all pods", put(SVC, "spec.selector.app|kubernetes|io/component", DELETE), "matches 4 workloads"),
    (
        "budget for nobody",
        put(("PodDisruptionBudget", "authfleet-server"), "spec.selector.matchLabels.x", "y"),
        "matches 0",
    ),
    ("monitor of nobody", put(("PodMonitor", "authfleet"), "spec.selector.matchLabels.x", "y"), "matches 0"),
    (
        "monitor of an unknown port",
        put(("PodMonitor", "authfleet"), "spec.podMetricsEndpoints.0.port", "metrics"),
        "no container",
    ),
    (
        "affinity to others",
        put(
            SERVER,
            f"{POD}.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution.0.labelSelector.matchLabels.x",
            "y",
        ),
        "affinity or spread",
    ),
    ("missing targetPort", put(SVC, "spec.ports.0.targetPort", "web"), "no container has"),
    ("policy type missing", put((NP, "authfleet-redis"), "spec.policyTypes.0", "Egress"), "without their policyType"),
    (
        "Ingress to no Service",
        put(("Ingress", "authfleet"), "spec.rules.0.http.paths.0.backend.service.name", "x"),
        "no Service x",
    ),
    ("Ingress host without TLS", put(("Ingress", "authfleet"), "spec.tls", []), "without TLS"),
    (
        "route to no port",
        put(("HTTPRoute", "authfleet"), "spec.rules.0.backendRefs.0.port", 8080),
        "no Service authfleet",
    ),
    (
        "route from no listener",
        put(("HTTPRoute", "authfleet"), "spec.parentRefs.0.sectionName", "tls"),
        "no listener tls",
    ),
    # Our own rules
    ("label missing", put(SVC, "metadata.labels.app|kubernetes|io/part-of", DELETE), "lacks the labels"),
    (
        "version label of another image",
        put(SERVER, "metadata.labels.app|kubernetes|io/version", "0.0.9"),
        "version label",
    ),
    (
        "namespace that is not restricted",
        put(("Namespace", "authfleet"), "metadata.labels.pod-security|kubernetes|io/enforce", "baseline"),
        "not enforced",
    ),
    ("service account token", put(SERVER, f"{POD}.automountServiceAccountToken", True), "token"),
    ("service links", put(SERVER, f"{POD}.enableServiceLinks", True), "each Service"),
    ("the node's network", put(NGINX, f"{POD}.hostNetwork", True), "namespace of its node"),
    ("user of the node", put(NGINX, f"{POD}.securityContext.runAsUser", 101), "user of the node"),
    ("no seccomp profile", put(REDIS, f"{POD}.securityContext.seccompProfile", DELETE), "no seccomp"),
    ("directory of the node", put(NGINX, f"{POD}.volumes.1", {"name": "tmp", "hostPath": {"path": "/tmp"}}), "forbids"),
    ("writable root", put(NGINX, f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False), "not exactly"),
    ("a capability", put(REDIS, f"{CONTAINER}.securityContext.capabilities.add", ["NET_ADMIN"]), "not exactly"),
    ("privileges may grow", put(JOB, f"{CONTAINER}.securityContext.allowPrivilegeEscalation", DELETE), "not exactly"),
    ("no memory limit", put(SERVER, f"{CONTAINER}.resources.limits.memory", DELETE), "no limits"),
    (
        "no requests in the init container",
        put(SERVER, f"{POD}.initContainers.0.resources.requests", DELETE),
        "no requests",
    ),
    ("latest", put(REDIS, f"{CONTAINER}.image", "docker.io/library/redis:latest"), "no full version"),
    ("no tag", put(REDIS, f"{CONTAINER}.image", "redis"), "no full version"),
    ("two versions of one image", put(SERVER, f"{POD}.initContainers.0.image", "authfleet:0.0.9"), "several versions"),
    ("no readiness probe", put(NGINX, f"{CONTAINER}.readinessProbe", DELETE), "no readinessProbe"),
    ("readiness on the public port", put(SERVER, f"{CONTAINER}.readinessProbe.httpGet.port", "http"), "ops port"),
    (
        "liveness that depends on the stores",
        put(SERVER, f"{CONTAINER}.livenessProbe.httpGet.path", "/readyz"),
        "restart every",
    ),
    ("unavailable replicas", put(SERVER, "spec.strategy.rollingUpdate.maxUnavailable", 1), "is not 0"),
    ("less time than draining takes", put(SERVER, f"{POD}.terminationGracePeriodSeconds", 30), "draining"),
    (
        "longer drain than the grace period",
        put(("ConfigMap", "authfleet-server"), "data.DRAIN_TIMEOUT", "60s"),
        "draining",
    ),
    (
        "idle connections that a drain ends",
        put(("ConfigMap", "authfleet-server"), "data.DRAIN_DELAY", "3s"),
        "until a drain ends them",
    ),
    ("nginx that does not wait", put(NGINX, f"{CONTAINER}.lifecycle", DELETE), "endpoint"),
    ("no budget", lambda objects: objects.remove(named(objects, "PodDisruptionBudget", "authfleet-nginx")), "0 PodDis"),
    (
        "Redis without a budget",
        lambda objects: objects.remove(named(objects, "PodDisruptionBudget", "authfleet-redis")),
        "0 PodDisruptionBudgets",
    ),
    (
        "budget that lets unready replicas go",
        put(("PodDisruptionBudget", "authfleet-server"), "spec.unhealthyPodEvictionPolicy", "AlwaysAllow"),
        "allows evicting unready pods",
    ),
    ("count against the autoscaler", put(SERVER, "spec.replicas", 3), "must set the count"),
    ("no count", put(NGINX, "spec.replicas", DELETE), "must set the count"),
    ("SQLite without affinity", put(SERVER, f"{POD}.affinity", DELETE), "need each other"),
    (
        "SQLite on many nodes",
        put(("PersistentVolumeClaim", "authfleet-data"), "spec.accessModes", ["ReadWriteMany"]),
        "one node",
    ),
    ("unknown variable", put(("ConfigMap", "authfleet-server"), "data.SESSION_TTL", "1h"), "SESSION_TTL is unknown"),
    (
        "secret in the environment",
        put(SERVER, f"{CONTAINER}.env.+", {"name": "REDIS_URL", "value": "redis://x"}),
        "from a file",
    ),
    (
        "secret file that is not mounted",
        put(SERVER, f"{CONTAINER}.env.1.value", "/run/secrets/REDIS_URL"),
        "not mounted",
    ),
    (
        "secret in the manifests",
        lambda objects: objects.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "authfleet"}}
        ),
        "must not contain secrets",
    ),
    (
        "ConfigMap that nobody uses",
        lambda objects: objects.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x-1", "namespace": "authfleet"}}
        ),
        "used nowhere",
    ),
    # Metrics and traces
    ("job by another name", put(("PodMonitor", "authfleet"), "spec.jobLabel", DELETE), "the job is not named"),
    (
        "series whose replica is the target's",
        put(("PodMonitor", "authfleet"), "spec.podMetricsEndpoints.0.honorLabels", False),
        "replaces that of the series",
    ),
    (
        "target without its replica",
        put(("PodMonitor", "authfleet"), "spec.podMetricsEndpoints.0.relabelings", DELETE),
        "the target lacks",
    ),
    (
        "replica that is not its pod",
        put(SERVER, f"{CONTAINER}.env.3", {"name": "REPLICA_ID", "value": "a"}),
        "REPLICA_ID",
    ),
    (
        "key of the collector in the environment",
        put(("ConfigMap", "authfleet-server"), "data.OTEL_EXPORTER_OTLP_HEADERS", "key=x"),
        "from a file",
    ),
    (
        "traces to another port",
        swap(("ConfigMap", "authfleet-server"), "data.OTEL_EXPORTER_OTLP_ENDPOINT", ":4318", ":4317"),
        "traces go to",
    ),
    (
        "traces to another namespace",
        swap(("ConfigMap", "authfleet-server"), "data.OTEL_EXPORTER_OTLP_ENDPOINT", "monitoring", "telemetry"),
        "traces go to",
    ),
    ("traces that are not let out", put((NP, "authfleet-server"), "spec.egress.2", DELETE), "4318) is needed, but"),
    (
        "way out for traces that nobody sends",
        put(("ConfigMap", "authfleet-server"), "data.OTEL_EXPORTER_OTLP_ENDPOINT", DELETE),
        "4318) is allowed out, but",
    ),
    # Network policies
    (
        "no denial of everything",
        put((NP, "authfleet-deny-all"), "spec.policyTypes", ["Ingress"]),
        "denies everything by default",
    ),
    (
        "way in that no connection needs",
        put(
            (NP, "authfleet-redis"),
            "spec.ingress.0.from.+",
            {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "edge"}}},
        ),
        "not a permitted connection",
    ),
    (
        "way out that no connection needs",
        put((NP, "authfleet-server"), "spec.egress.+", {"ports": [{"port": 443}]}),
        "not a permitted connection",
    ),
    ("every port", put((NP, "authfleet-redis"), "spec.ingress.0.ports", DELETE), "every port"),
    (
        "connection that is not allowed in",
        put((NP, "authfleet-server"), "spec.ingress.1", DELETE),
        "needed, but not allowed in",
    ),
    (
        "connection that is not allowed out",
        put((NP, "authfleet-nginx"), "spec.egress.1", DELETE),
        "needed, but not allowed out",
    ),
    ("connection to a wrong port", put(REDIS, f"{CONTAINER}.ports.0.containerPort", 6380), "has no port 6379"),
]

# The same for what only overlays/scale-out has.
POSTGRES = ("Cluster", "authfleet-postgres")
SCALE_OUT = [
    ("unknown field of PostgreSQL", put(POSTGRES, "spec.replicas", 3), "replicas"),
    ("unknown field deep down", put(POSTGRES, "spec.postgresql.synchronous.mode", "any"), "mode"),
    ("unknown durability", put(POSTGRES, "spec.postgresql.synchronous.dataDurability", "none"), "none"),
    ("number in PostgreSQL's settings", put(POSTGRES, "spec.postgresql.parameters.max_connections", 100), "100"),
    ("missing count", put(POSTGRES, "spec.instances", DELETE), "instances"),
    (
        "PostgreSQL that the replicas can't reach",
        put((NP, "authfleet-postgres"), "spec.ingress.0", DELETE),
        "('server', 'users', 5432) is needed, but not allowed in",
    ),
    (
        "PostgreSQL that the operator can't reach",
        put((NP, "authfleet-postgres"), "spec.ingress.2", DELETE),
        "('cnpg-system', 'users', 8000) is needed, but not allowed in",
    ),
    (
        "PostgreSQL that anybody reaches",
        put((NP, "authfleet-postgres"), "spec.ingress.0.from", DELETE),
        "('anybody', 'users', 5432) is allowed in, but",
    ),
]


@pytest.mark.parametrize(("change", "words"), [mutant[1:] for mutant in SCALE_OUT], ids=[m[0] for m in SCALE_OUT])
def test_refused_with_postgres(change, words):
    objects = copy.deepcopy(full("scale-out"))
    change(objects)
    found = refusals(objects)
    assert any(words in problem for problem in found), f"not refused for this reason: {found}"


@pytest.mark.parametrize(("change", "words"), [mutant[1:] for mutant in MUTANTS], ids=[mutant[0] for mutant in MUTANTS])
def test_refused(change, words):
    objects = copy.deepcopy(full("local"))
    change(objects)
    found = refusals(objects)
    assert any(words in problem for problem in found), f"not refused for this reason: {found}"


def test_every_rule_has_its_mutant():
    proven = set()
    for _, change, words in MUTANTS:
        objects = copy.deepcopy(full("local"))
        change(objects)
        proven |= {problem.partition(":")[0] for problem in refusals(objects) if words in problem}
    assert {check.__name__ for check in policy.RULES} <= proven


@pytest.mark.parametrize(
    ("which", "path", "value"),
    [
        (SERVER, f"{CONTAINER}.resources.limits.memory", "256MB"),
        (("PersistentVolumeClaim", "authfleet-data"), "spec.resources.requests.storage", "1 Gi"),
        (NGINX, f"{POD}.volumes.1.emptyDir.sizeLimit", "16mb"),
    ],
)
def test_kubectl_cannot_read_a_bad_quantity(which, path, value):
    objects = copy.deepcopy(full("local"))
    put(which, path, value)(objects)
    assert "quantities must match" in unreadable(objects)
