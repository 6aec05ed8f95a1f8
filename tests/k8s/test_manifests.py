"""Tests every overlay with every set of components: it is valid, and matches the files that it is made from."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

import policy
import schema
from fleet import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    STORES,
    full,
    full_name,
    kustomize,
    label,
    named,
    of_kind,
    render_own,
    rendered,
    renders,
    unreadable,
)
from test_credentials import credentials


def test_schemas_accept_every_combination():
    for name, objects in renders().items():
        assert schema.problems(objects) == [], name


def test_our_own_rules_hold_in_every_combination():
    for name, objects in renders().items():
        assert policy.problems(objects) == [], name


def test_kubectl_reads_every_object():
    for overlay in OVERLAYS:
        assert unreadable(full(overlay)) == "", overlay


def test_every_other_kubectl_renders_the_same():
    """renders() compares the oldest and the newest kubectl. Google's SDK has those in between as kubectl.1.NN."""
    others = {file.name: file for path in os.get_exec_path() for file in Path(path).glob("kubectl.1.*")}
    for overlay in OVERLAYS:
        full(overlay)
        directory = rendered(full_name(overlay))
        for name, kubectl in others.items():
            assert kustomize(str(kubectl), directory) == (directory / "rendered.yaml").read_text(), f"{name}: {overlay}"


def test_every_directory_is_rendered():
    kustomizations = {file.parent.relative_to(K8S).as_posix() for file in K8S.rglob("kustomization.yaml")}
    rendered = {f"overlays/{overlay}" for overlay in OVERLAYS}
    stores = [path for store in STORES["scale-out"] for path in (store, f"{store}/network-policies")]
    rendered |= {f"components/{component}" for component in [*OVERLAYS.values(), *stores, *COMPONENTS]}
    # The others include these.
    # test_backups_go_where_the_readme_says renders this one.
    rendered.add("components/postgres-cnpg/backup")
    assert kustomizations - rendered == {"base", "components/ingress/behind-proxy"}


def test_components_and_overlays_have_a_readme():
    for directory in [K8S, *K8S.glob("components/*"), *K8S.glob("overlays/*")]:
        assert (directory / "README.md").is_file(), directory


def test_configurations_are_the_files_in_deploy():
    nginx, redis = ROOT / "deploy/nginx", ROOT / "deploy/redis"
    local = full("local")
    data = dict(named(local, "ConfigMap", "authfleet-nginx")["data"])
    assert data.pop("upstream.conf") == (nginx / "upstream/k8s.conf").read_text()
    assert data.pop("http-k8s.conf") == (nginx / "http/k8s.conf").read_text()
    assert data.pop("edge.conf") == (K8S / "components/ingress/behind-proxy/edge.conf").read_text()
    assert data == {name: (nginx / name).read_text() for name in data}
    assert named(local, "ConfigMap", "authfleet-redis")["data"] == {"redis.conf": (redis / "redis.conf").read_text()}
    plain = named(renders()["local"], "ConfigMap", "authfleet-nginx")["data"]
    assert plain == {
        **data,
        "upstream.conf": (nginx / "upstream/k8s.conf").read_text(),
        "edge.conf": (nginx / "edge.conf").read_text(),
        "http-k8s.conf": (nginx / "http/k8s.conf").read_text(),
    }
    # nginx itself fails if an included file isn't mounted. Here, every mounted file must also be included.
    included = set(re.findall(r"^\s*include (\S+);", "\n".join(plain.values()), re.MULTILINE))
    # The second pattern is for the applications of compose's profile apps, which Kubernetes doesn't have.
    patterns = {"http-*.conf", "apps-*.conf"}
    assert patterns <= included
    assert set(plain) == included - patterns | {"http-k8s.conf", "nginx.conf"}


def test_behind_a_proxy_only_the_trusted_networks_differ():
    """components/ingress has its own edge.conf, which is the same as deploy/'s from the first map on."""
    begin = "map $behind_proxy:"
    ours = (K8S / "components/ingress/behind-proxy/edge.conf").read_text()
    theirs = (ROOT / "deploy/nginx/edge.conf").read_text()
    assert ours.partition(begin)[2] == theirs.partition(begin)[2] != ""
    # The networks trusted for the address and for the scheme must be the same.
    assert re.findall(r"set_real_ip_from (\S+);", ours) == re.findall(r"^    (\S+/\d+) 1;", ours, re.MULTILINE)


def test_cookies_are_secure_wherever_tls_ends():
    for name, objects in renders().items():
        secure = named(objects, "ConfigMap", "authfleet-server")["data"]["COOKIE_SECURE"]
        assert secure == ("false" if name.startswith("local") and "ingress" not in name else "true"), name


def test_nginx_asks_the_headless_service():
    for overlay in OVERLAYS:
        objects = full(overlay)
        upstream = named(objects, "ConfigMap", "authfleet-nginx")["data"]["upstream.conf"]
        service = named(objects, "Service", "authfleet-replicas")
        assert service["spec"]["clusterIP"] == "None"
        address = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
        assert set(re.findall(r"^server (\S+) resolve", upstream, re.MULTILINE)) == {
            f"{address}:{service['spec']['ports'][0]['port']}"
        }
        job = named(objects, "Job", "authfleet-sharing")["spec"]["template"]["spec"]["containers"][0]
        assert {"name": "REPLICAS", "value": address} in job["env"]


def test_scale_out_has_no_shared_state():
    for name, objects in renders().items():
        if name.startswith("scale-out"):
            assert of_kind(objects, "PersistentVolumeClaim") == [], name
            if "redis-cluster" not in name:
                assert of_kind(objects, "StatefulSet") == [], name
                assert not any("redis" in label(thing) for thing in objects), name
            server = named(objects, "Deployment", "authfleet-server")["spec"]["template"]["spec"]
            assert {term["topologyKey"] for term in server["topologySpreadConstraints"]} == {
                "kubernetes.io/hostname",
                "topology.kubernetes.io/zone",
            }


def test_certificates_are_mounted_where_the_urls_name_them():
    server = named(full("scale-out"), "Deployment", "authfleet-server")["spec"]["template"]["spec"]
    volume = next(volume for volume in server["volumes"] if volume["name"] == "certificates")
    assert {"name": "authfleet-certificates", "optional": True}.items() <= volume["configMap"].items()
    for container in (*server["initContainers"], *server["containers"]):
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts["/run/certificates"] == "certificates"
    variable = next(v for v in server["containers"][0]["env"] if v["name"] == "REDIS_CA_FILE")["valueFrom"]
    assert variable["configMapKeyRef"] == {"name": "authfleet-certificates", "key": "REDIS_CA_FILE", "optional": True}


def test_postgres_loses_no_commit_and_its_authority_is_trusted():
    objects = full("scale-out")
    spec = named(objects, "Cluster", "authfleet-postgres")["spec"]
    # With a standby lost, another one must be left to wait for.
    synchronous = spec["postgresql"]["synchronous"]
    assert synchronous["dataDurability"] == "required" and synchronous["failoverQuorum"] is True
    assert 1 <= synchronous["number"] <= spec["instances"] - 2
    assert spec["affinity"]["podAntiAffinityType"] == "required"
    # What the operator reads, and what it makes, by the names that credentials.py and the replicas use.
    secrets = credentials("new", "--postgres-cnpg", REDIS_URL="rediss://cache")
    made = {item["metadata"]["name"]: item for item in json.loads(secrets)["items"]}
    initdb = spec["bootstrap"]["initdb"]
    assert made[initdb["secret"]["name"]]["type"] == "kubernetes.io/basic-auth"
    url = urlsplit(base64.b64decode(made["authfleet-server"]["data"]["DATABASE_URL"]).decode())
    assert url.hostname == "authfleet-postgres-rw.authfleet.svc.cluster.local"
    assert (url.username, url.path) == (initdb["owner"], f"/{initdb['database']}")
    server = named(objects, "Deployment", "authfleet-server")["spec"]["template"]["spec"]
    volume = next(volume for volume in server["volumes"] if volume["name"] == "postgres-ca")
    assert volume["secret"]["secretName"] == "authfleet-postgres-ca"
    for container in (*server["initContainers"], *server["containers"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert parse_qs(url.query) == {
            "sslmode": ["verify-full"],
            "sslrootcert": [f"{mounts['postgres-ca']}/{volume['secret']['items'][0]['path']}"],
        }


def test_backups_go_where_the_readme_says():
    chosen = ["network-policies-scale-out", *(f"postgres-cnpg{part}" for part in ("/network-policies", "", "/backup"))]
    parts = {"resources": ["../k8s/overlays/scale-out"], "components": [f"../k8s/components/{path}" for path in chosen]}
    objects = render_own("backup", parts)
    assert schema.problems(objects) == policy.problems(objects) == []
    text = (K8S / "components/postgres-cnpg/README.md").read_text()
    store = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1])
    (plugin,) = named(objects, "Cluster", "authfleet-postgres")["spec"]["plugins"]
    assert plugin["isWALArchiver"] is True
    assert plugin["parameters"]["barmanObjectName"] == store["metadata"]["name"]
    backup = named(objects, "ScheduledBackup", "authfleet-postgres")["spec"]
    assert backup["cluster"]["name"] == "authfleet-postgres"
    assert (backup["method"], backup["pluginConfiguration"]["name"]) == ("plugin", plugin["name"])
    # Cron with seconds in front, unlike a CronJob's.
    assert len(backup["schedule"].split()) == 6


def test_the_cluster_has_the_configuration_of_deploy():
    objects = full("scale-out")
    files = ("redis.conf", "replicated.conf", "cluster.conf")
    data = named(objects, "ConfigMap", "authfleet-redis-cluster")["data"]
    assert data == {name: (ROOT / "deploy/redis" / name).read_text() for name in files}
    members = named(objects, "StatefulSet", "authfleet-redis-cluster")["spec"]["replicas"]
    job = named(objects, "Job", "authfleet-redis-create")["spec"]["template"]["spec"]["containers"][0]
    nodes = next(variable["value"] for variable in job["env"] if variable["name"] == "NODES")
    host = "authfleet-redis-cluster-{0}.authfleet-redis-cluster.authfleet.svc.cluster.local:6379"
    assert nodes.split() == [host.format(member) for member in range(members)]


def test_replicas_run_the_same_version_as_the_migration():
    for overlay in OVERLAYS:
        spec = named(full(overlay), "Deployment", "authfleet-server")["spec"]["template"]["spec"]
        assert spec["initContainers"][0]["image"] == spec["containers"][0]["image"]
        assert spec["initContainers"][0]["args"] == ["migrate"]


def test_images_are_named_in_one_place():
    tags = re.compile(r"(image: \S+:\S+|newTag: )")
    named_in = {file.relative_to(K8S).as_posix() for file in K8S.rglob("*.yaml") if tags.search(file.read_text())}
    assert named_in == {
        "base/kustomization.yaml",
        "components/loadtest/kustomization.yaml",
        "components/redis-cluster/kustomization.yaml",
    }


def test_the_rules_are_those_of_deploy():
    made = subprocess.run(
        [sys.executable, ROOT / "tools/generate/prometheus_rule.py"], capture_output=True, text=True, check=True
    ).stdout
    current = (K8S / "components/monitoring/rules.yaml").read_text()
    assert made == current, "run tools/generate/prometheus_rule.py >k8s/components/monitoring/rules.yaml"
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert named(full("local"), "PrometheusRule", "authfleet")["spec"]["groups"] == groups


def test_alerts_and_autoscaler_ask_metrics_that_exist():
    known = json.loads((ROOT / "docs/metrics.json").read_text())
    # Recorded series, whose names contain colons, are left out.
    asked = set(
        re.findall(
            r"(?<![\w:])authfleet_\w+(?![\w:])",
            str(of_kind(full("local"), "PrometheusRule", "HorizontalPodAutoscaler")),
        )
    )
    assert asked and asked <= set(known)


def test_the_load_test_has_every_script_it_imports():
    spec = named(full("local"), "Job", "authfleet-sharing")["spec"]["template"]["spec"]
    data = named(full("local"), "ConfigMap", "authfleet-k6")["data"]
    mounted = {item["path"]: data[item["key"]] for item in spec["volumes"][0]["configMap"]["items"]}
    assert len(mounted) == len(data)
    for path, text in mounted.items():
        assert text == (ROOT / "loadtest/k6" / path).read_text()
        for target in re.findall(r"from '(\.[^']+)'", text):
            resolved = (ROOT / "loadtest/k6" / path).parent.joinpath(target).resolve()
            assert resolved.relative_to(ROOT / "loadtest/k6").as_posix() in mounted, f"{path} imports {target}"
