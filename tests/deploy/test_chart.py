"""The Helm chart: what it renders from coredns/coredns's values, against the schemas and kdns itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import kdns
from kdns.cli.plugins import not_built
from kdns.server import build

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "kdns"
NOT_BUILT = not_built()[0]
pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")


def rendered(tmp_path: Path, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values or {}))
    words = [
        "helm",
        "template",
        "dns",
        str(CHART),
        "--kube-version",
        "1.31.0",
        "--namespace",
        "kube-system",
        "-f",
        str(path),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    for found in objects:
        if found["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(found, "1.31", strict=True)
    return objects


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [obj for obj in objects if obj["kind"] == kind]
    assert len(found) == 1, kind
    return found[0]


def test_the_defaults_are_a_cluster_service_that_kdns_takes(tmp_path: Path) -> None:
    objects = rendered(tmp_path)
    build.build(build.read(one(objects, "ConfigMap")["data"]["Corefile"], "Corefile"))
    pod = one(objects, "Deployment")["spec"]["template"]
    assert (
        pod["metadata"]["labels"]["k8s-app"] == "kube-dns"
        and pod["spec"]["containers"][0]["image"] == f"kdns:{kdns.__version__}"
    )
    assert (
        pod["spec"]["securityContext"]["runAsNonRoot"]
        and "cpu" not in pod["spec"]["containers"][0]["resources"]["limits"]
    )
    assert one(objects, "Service")["spec"]["selector"]["k8s-app"] == "kube-dns"


# What people have in their values.yaml for coredns/coredns.
THEIRS: dict[str, Any] = {
    "replicaCount": 3, "isClusterService": True, "k8sAppLabelOverride": "kube-dns",
    "service": {"clusterIP": "10.96.0.10", "name": "kube-dns", "annotations": {"a": "b"}},
    "serviceAccount": {"create": True, "name": "coredns"}, "clusterRole": {"nameOverride": "system:dns"},
    "servers": [
        {"zones": [{"zone": "."}], "port": 53, "servicePort": 53, "plugins": [
            {"name": "errors"}, {"name": "cache", "parameters": 30},
            {"name": "forward", "parameters": ". 1.1.1.1", "configBlock": "max_concurrent 1000\nprefer_udp"}]},
        {"zones": [{"zone": "corp.example.org", "use_tcp": True}, {"zone": "lab.example.org"}], "port": 5353,
            "plugins": [
            {"name": "hosts", "configBlock": "10.0.0.1 a.corp.example.org\nfallthrough"}, {"name": "whoami"}]},
    ],
    "extraConfig": {"import": {"parameters": "/opt/coredns/*.conf"}},
    "extraSecrets": [{"name": "etcd-certs", "mountPath": "/etc/certs", "defaultMode": 420}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/opt/coredns"}],
    "prometheus": {"service": {"enabled": True},
        "monitor": {"enabled": True, "interval": "30s", "additionalLabels": {"release": "p"}}},
    "podDisruptionBudget": {"maxUnavailable": 1},
    "hpa": {"enabled": True, "minReplicas": 2, "maxReplicas": 5, "metrics": []},
    "tolerations": [{"key": "x", "operator": "Exists"}], "nodeSelector": {"kubernetes.io/os": "linux"},
    "customLabels": {"team": "dns"},
    "podAnnotations": {"note": "text"}, "env": [{"name": "A", "value": "b"}], "priorityClassName": "mine",
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"k8s-app": "{{ .Values.k8sAppLabelOverride }}"}}}],
}  # fmt: skip


def test_values_of_the_original_chart_work_unchanged(tmp_path: Path) -> None:
    objects = rendered(tmp_path, THEIRS)
    corefile = one(objects, "ConfigMap")["data"]["Corefile"]
    built = build.build(build.read(corefile, "Corefile", reader=None))
    assert [[str(key) for key in block.parsed.keys] for block in built.blocks] == [
        [".:53"],
        ["corp.example.org.:5353", "lab.example.org.:5353"],
    ]
    services = {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "Service"}
    assert services["kube-dns"]["clusterIP"] == "10.96.0.10"
    assert [(port["port"], port["protocol"]) for port in services["kube-dns"]["ports"]] == [
        (53, "UDP"),
        (5353, "UDP"),
        (5353, "TCP"),
    ]
    assert services["dns-kdns-metrics"]["ports"][0]["port"] == 9153
    spec = one(objects, "Deployment")["spec"]
    assert "replicas" not in spec and spec["template"]["spec"]["priorityClassName"] == "mine"
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {"config-volume": "/etc/coredns", "etcd-certs": "/etc/certs", "more": "/opt/coredns"}
    constraint = spec["template"]["spec"]["topologySpreadConstraints"][0]
    assert constraint["labelSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert (
        one(objects, "ClusterRole")["metadata"]["name"] == "system:dns"
        and one(objects, "ServiceAccount")["metadata"]["name"] == "coredns"
    )
    assert {"PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor"} <= {obj["kind"] for obj in objects}


@pytest.mark.parametrize(
    ("scheme", "port", "protocol"),
    [
        ("tls://", 853, "TCP"), ("https://", 443, "TCP"), ("grpc://", 5443, "TCP"), ("quic://", 853, "UDP"),
        ("https3://", 443, "UDP"),
    ],
)  # fmt: skip
def test_encrypted_servers_were_refused_though_kdns_serves_them(
    tmp_path: Path, scheme: str, port: int, protocol: str
) -> None:
    certificate = {"name": "tls", "parameters": "/etc/tls/tls.crt /etc/tls/tls.key"}
    objects = rendered(tmp_path, {
        "servers": [
            {"zones": [{"zone": "."}], "port": 53, "plugins": [{"name": "whoami"}]},
            {"zones": [{"zone": ".", "scheme": scheme}], "port": port, "plugins": [certificate, {"name": "whoami"}]},
        ],
        "extraSecrets": [{"name": "dns-tls", "mountPath": "/etc/tls"}],
    })  # fmt: skip
    built = build.build(build.read(one(objects, "ConfigMap")["data"]["Corefile"], "Corefile", reader=None))
    assert [str(key) for block in built.blocks for key in block.parsed.keys] == [".:53", f"{scheme}.:{port}"]
    ports = {(each["containerPort"], each["protocol"]) for each in container(objects)["ports"]}
    assert {(53, "UDP"), (port, protocol)} <= ports and sum(number == port for number, _ in ports) == 1


def test_a_server_beside_the_clusters_own_is_no_cluster_service(tmp_path: Path) -> None:
    objects = rendered(tmp_path, {"isClusterService": False, "deployment": {"name": "edge"}})
    pod = one(objects, "Deployment")
    assert pod["metadata"]["name"] == "edge" and "k8s-app" not in pod["spec"]["template"]["metadata"]["labels"]
    assert "priorityClassName" not in pod["spec"]["template"]["spec"]


def test_replicas_follow_the_size_of_the_cluster_where_that_is_asked_for(tmp_path: Path) -> None:
    flags = ["--nodelabels=a=b"]
    values = {
        "autoscaler": {
            "enabled": True,
            "min": 2,
            "coresPerReplica": 128,
            "customFlags": flags,
            "tolerations": [{"operator": "Exists"}],
        }
    }
    objects = rendered(tmp_path, values)
    named = {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}
    assert "replicas" not in named["Deployment", "dns-kdns"]["spec"]
    scaler = named["Deployment", "dns-kdns-autoscaler"]["spec"]["template"]
    words = scaler["spec"]["containers"][0]["command"]
    assert "--target=Deployment/dns-kdns" in words and "--configmap=dns-kdns-autoscaler" in words and flags[0] in words
    assert scaler["spec"]["tolerations"] == [{"operator": "Exists"}]
    linear = json.loads(named["ConfigMap", "dns-kdns-autoscaler"]["data"]["linear"])
    assert linear == {"coresPerReplica": 128, "nodesPerReplica": 16, "min": 2, "max": 0,
        "preventSinglePointFailure": True,
                      "includeUnschedulableNodes": False}  # fmt: skip
    [rule] = [
        rule for rule in named["Role", "dns-kdns-autoscaler"]["rules"] if "deployments/scale" in rule["resources"]
    ]
    assert rule["resourceNames"] == ["dns-kdns"]
    # Its Pod answers no DNS: the Service must not choose it.
    assert not one(objects, "Service")["spec"]["selector"].items() <= scaler["metadata"]["labels"].items()


def test_two_that_scale_the_same_deployment_are_refused() -> None:
    words = [
        "helm",
        "template",
        "dns",
        str(CHART),
        "--kube-version",
        "1.31.0",
        "--set",
        "autoscaler.enabled=true,hpa.enabled=true",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "choose one" in done.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replicaCount=many", "replicaCount"),
        ("autoscaler.enabled=perhaps", "autoscaler.enabled"),
        ("serviceType=Cluster", "serviceType"),
        ("servers[0].port=70000", "servers.0.port"),
        ("hpa.enabled=maybe", "hpa.enabled"),
        ("pluginFiles.a=1", "pluginFiles.a"),
    ],
)
def test_values_that_cannot_be_or_would_do_nothing_are_refused_by_name(setting: str, named: str) -> None:
    words = ["helm", "template", "dns", str(CHART), "--set", setting]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    # The setting as helm writes it: `servers.0.port:` until 3.17, `at '/servers/0/port':` since.
    assert f"- {named}: " in done.stderr or f"'/{named.replace('.', '/')}'" in done.stderr, done.stderr


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def with_plugins(*plugins: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"servers": [{"zones": [{"zone": "example.org"}], "port": 53, "plugins": list(plugins)}], **values}


SIGN = {"name": "sign", "parameters": "/etc/coredns/db.example.org", "configBlock": "key directory /etc/keys"}
SECONDARY = {"name": "secondary", "configBlock": "transfer from 10.0.0.1\ndirectory /var/lib/coredns"}
DYNUPDATE = {
    "name": "dynupdate",
    "configBlock": "file /etc/coredns/db\ndatabase /var/lib/coredns/db\nallow k. * TXT",
}
SNAPSHOT = {"name": "kubernetes", "parameters": "cluster.local", "configBlock": "snapshot /var/lib/coredns/state"}


@pytest.mark.parametrize("plugin", [SIGN, SECONDARY, SNAPSHOT], ids=lambda each: str(each["name"]))
def test_plugins_that_write_have_a_folder_for_it_and_nothing_else_is_writable(
    tmp_path: Path, plugin: dict[str, Any]
) -> None:
    objects = rendered(tmp_path, with_plugins(plugin, writable={"enabled": True}))
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    (folder,) = [each for each in container(objects)["volumeMounts"] if not each.get("readOnly")]
    assert folder == {"name": "writable", "mountPath": "/var/lib/coredns"}
    assert [each for each in pod["volumes"] if each["name"] == "writable"] == [
        {"name": "writable", "emptyDir": {"sizeLimit": "256Mi"}}
    ]
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["fsGroup"] == pod["containers"][0]["securityContext"]["runAsGroup"]


def test_the_folder_that_is_written_to_may_be_a_claim_that_outlives_its_pods(tmp_path: Path) -> None:
    writable = {"enabled": True, "existingClaim": "zones", "mountPath": "/data"}
    values = with_plugins(
        {**DYNUPDATE, "configBlock": DYNUPDATE["configBlock"].replace("/var/lib/coredns", "/data")},
        writable=writable, replicaCount=1, rollingUpdate={"maxUnavailable": 1, "maxSurge": 0},
    )  # fmt: skip
    objects = rendered(tmp_path, values)
    assert {"name": "writable", "mountPath": "/data"} in container(objects)["volumeMounts"]
    assert {"name": "writable", "persistentVolumeClaim": {"claimName": "zones"}} in one(objects, "Deployment")["spec"][
        "template"
    ]["spec"]["volumes"]
    plain = rendered(tmp_path)
    assert "writable" not in json.dumps(plain)


def workers(parameters: Any, **values: Any) -> dict[str, Any]:
    return with_plugins({"name": "multisocket", "parameters": parameters}, {"name": "whoami"}, **values)


@pytest.mark.parametrize(("values", "limit", "request_"), [
    (workers(1), "170Mi", "70Mi"), (workers(2), "290Mi", "130Mi"), (workers("8"), "650Mi", "310Mi"),
    (workers(8, resources={"limits": {"memory": "300Mi"}}), "300Mi", "310Mi"),
    (workers("", resources={"limits": {"memory": "4Gi"}, "requests": {"memory": "1Gi"}}), "4Gi", "1Gi"),
])  # fmt: skip
def test_the_memory_fits_the_workers_unless_it_was_chosen(
    tmp_path: Path, values: dict[str, Any], limit: str, request_: str
) -> None:
    found = container(rendered(tmp_path, values))["resources"]
    assert (found["limits"]["memory"], found["requests"]["memory"]) == (limit, request_)


@pytest.mark.parametrize(("values", "said"), [
    ({"servers": [{"zones": [{"zone": "."}], "port": 53, "plugins": [{"name": NOT_BUILT}]}]}, f"kdns has no plugin "
        f"{NOT_BUILT} yet"),
    (with_plugins(SIGN), "sign writes to a folder, and everything in the container is read-only: set writable.enabled"),
    (with_plugins(SECONDARY), "secondary writes to a folder"),
    (with_plugins(SNAPSHOT), "kubernetes writes to a folder"),
    (with_plugins(DYNUPDATE, writable={"enabled": True}, replicaCount=1),
        "dynupdate keeps what clients changed in its folder: set writable.existingClaim"),
    (with_plugins(DYNUPDATE, writable={"enabled": True, "existingClaim": "zones"}),
        "one server at a time uses dynupdate's folder: set replicaCount to 1 and rollingUpdate.maxSurge to 0"),
    (workers(""), "multisocket without a number makes as many workers as its node has processors"),
    ({"pluginFiles": {"a/b.py": "# text"}}, 'pluginFiles: "a/b.py" cannot be a key of the ConfigMap'),
    ({"pluginFiles": {"..data": "# text"}}, 'pluginFiles: "..data" cannot be a key of the ConfigMap'),
    ({"pluginFiles": {"Corefile": "# text"}}, "pluginFiles: Corefile is already the Corefile or one of zoneFiles"),
    ({"pluginFiles": {"db": "# text"}, "zoneFiles": [{"filename": "db", "contents": ""}]},
        "pluginFiles: db is already the Corefile or one of zoneFiles"),
    ({"terminationGracePeriodSeconds": 9}, "terminationGracePeriodSeconds: 9 s are less than health's lameduck of 5 s "
        "and the 5 s"),
])  # fmt: skip
def test_what_kdns_cannot_serve_is_a_sentence_and_not_a_pod_that_crashes(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["helm", "template", "dns", str(CHART), "--kube-version", "1.31.0", "-f", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and said in done.stderr, done.stderr


# A text that YAML could take for something else: a colon, a quote, an indented first line, a long line, a tab.
HELLO = f"""\
    # indented: first
from kdns.plugin import Plugin


class Hello(Plugin):
    name = "hello"
    words = "{"long " * 50}"
\t# tab: 'quoted' {{{{ .Values.x }}}}
"""


def test_files_of_plugins_lie_beside_the_corefile(tmp_path: Path) -> None:
    files = {"hello.py": HELLO, "machines.txt": "a: b", "empty.txt": "", "12": "12"}
    zone = {"filename": "db.example.org", "contents": "@ 60 IN A 192.0.2.1\n"}
    plugin = {"name": "plugin", "parameters": "hello.py"}
    objects = rendered(tmp_path, with_plugins(plugin, {"name": "whoami"}, pluginFiles=files, zoneFiles=[zone]))
    data = one(objects, "ConfigMap")["data"]
    assert {name: text for name, text in data.items() if name != "Corefile"} == {
        **files,
        "db.example.org": zone["contents"],
    }
    assert "plugin hello.py" in data["Corefile"]
    # Every key is mounted where the Corefile is, and a changed file makes new Pods.
    pod = one(objects, "Deployment")["spec"]["template"]
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "config-volume")
    assert volume["configMap"] == {"name": one(objects, "ConfigMap")["metadata"]["name"]}
    changed = rendered(tmp_path, with_plugins(plugin, {"name": "whoami"}, pluginFiles={**files, "hello.py": "# other"}))
    annotations = one(changed, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["checksum/config"] != pod["metadata"]["annotations"]["checksum/config"]


def test_the_documented_command_takes_a_plugins_file_from_the_disk(tmp_path: Path) -> None:
    page = (CHART.parents[2] / "docs" / "plugins.md").read_text()
    (option,) = re.findall(r"^helm upgrade .* --set-file '(.*)'$", page, re.M)
    (tmp_path / "hello.py").write_text(HELLO)
    words = ["helm", "template", "dns", str(CHART), "--kube-version", "1.31.0", "--set-file", option]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert one([each for each in yaml.safe_load_all(done.stdout) if each], "ConfigMap")["data"]["hello.py"] == HELLO


# What the README of coredns/coredns shows in its table of values and its examples.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "service type": {"serviceType": "NodePort", "isClusterService": False},
    "fixed address": {"service": {"clusterIP": "10.96.0.10", "name": "kube-dns"}},
    "dual stack": {"service": {"clusterIPs": ["10.96.0.10", "fd00::10"], "ipFamilyPolicy": "PreferDualStack"}},
    "monitor": {"prometheus": {"service": {"enabled": True},
        "monitor": {"enabled": True, "additionalLabels": {"release": "prom"}}}},
    "resources": {"resources": {"limits": {"cpu": "100m", "memory": "128Mi"},
        "requests": {"cpu": "100m", "memory": "128Mi"}}},
    "affinity": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]}}},
    "autoscaler": {"autoscaler": {"enabled": True, "coresPerReplica": 256, "nodesPerReplica": 16}},
    "budget": {"podDisruptionBudget": {"minAvailable": 1}},
    "server": {"servers": [{"zones": [{"zone": "."}], "port": 53, "plugins": [
        {"name": "errors"}, {"name": "health", "configBlock": "lameduck 5s"}, {"name": "ready"},
        {"name": "kubernetes", "parameters": "cluster.local in-addr.arpa ip6.arpa",
         "configBlock": "pods insecure\nfallthrough in-addr.arpa ip6.arpa\nttl 30"},
        {"name": "prometheus", "parameters": "0.0.0.0:9153"}, {"name": "forward", "parameters": ". /etc/resolv.conf"},
        {"name": "cache", "parameters": 30}, {"name": "loop"}, {"name": "reload"}, {"name": "loadbalance"}]}]},
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_originals_documented_values_render_a_corefile_that_kdns_takes(tmp_path: Path, name: str) -> None:
    objects = rendered(tmp_path, DOCUMENTED[name])
    maps = [obj for obj in objects if obj["kind"] == "ConfigMap" and "Corefile" in obj["data"]]
    build.build(build.read(maps[0]["data"]["Corefile"], "Corefile"))
