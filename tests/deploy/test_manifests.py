"""What is deployed: manifests as kubectl renders them, against the schemas, the restricted Pod profile, and what kdns
serves.
"""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import kdns
from kdns.cli import compare
from kdns.cli.flags import parse_among
from kdns.cli.plugins import not_built
from kdns.metrics import REGISTRY
from kdns.server import build, catalog
from kdns.testing import free_port, http_get
from tests.corefile.test_real_world import AKS, K3S

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TREES = ("base", *(f"overlays/{path.name}" for path in sorted((DEPLOY / "overlays").iterdir())))
OWN = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def rendered(tree: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / tree)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def one(tree: str, kind: str) -> dict[str, Any]:
    found = [obj for obj in rendered(tree) if obj["kind"] == kind]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("tree", TREES)
def test_every_object_fits_the_schemas(tree: str) -> None:
    for obj in rendered(tree):
        if obj["kind"] not in ("PrometheusRule", "ServiceMonitor"):
            kubernetes_validate.validate(obj, "1.31", strict=True)


def pod_specs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (tree, obj["spec"]["template"]["spec"])
        for tree in TREES
        for obj in rendered(tree)
        if obj["kind"] in ("Deployment", "DaemonSet")
    ]


def test_pods_are_restricted_and_run_as_the_images_user() -> None:
    assert len(pod_specs()) == 4
    for tree, spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {
            "type": "RuntimeDefault"
        }
        for container in spec["containers"]:
            context = container["securityContext"]
            assert (
                context["allowPrivilegeEscalation"] is False
                and context["readOnlyRootFilesystem"]
                and context["runAsUser"] == 65532
            )
            assert context["capabilities"] == {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}, tree
            assert container["image"] == f"kdns:{kdns.__version__}" and container["args"] == [
                "-conf",
                "/etc/coredns/Corefile",
            ]
            assert "cpu" not in container["resources"].get("limits", {})


@pytest.mark.parametrize("tree", TREES)
def test_every_corefile_is_one_that_kdns_takes(tree: str) -> None:
    for obj in rendered(tree):
        if obj["kind"] == "ConfigMap" and "Corefile" in obj["data"]:
            build.build(build.read(obj["data"]["Corefile"], "Corefile"))


def test_names_labels_and_ports_are_those_that_others_select_on() -> None:
    service = one("base", "Service")
    assert service["metadata"]["name"] == "kube-dns" and service["spec"]["selector"] == {"k8s-app": "kube-dns"}
    assert [(port["name"], port["port"], port["protocol"]) for port in service["spec"]["ports"]] == [
        ("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP"),
    ]  # fmt: skip
    deployment = one("base", "Deployment")
    assert (
        deployment["metadata"]["name"] == "coredns"
        and deployment["spec"]["template"]["spec"]["containers"][0]["name"] == "coredns"
    )
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == "coredns"
    assert deployment["spec"]["template"]["metadata"]["labels"]["k8s-app"] == "kube-dns"


def test_the_role_allows_to_list_and_watch_and_nothing_else() -> None:
    role = one("base", "ClusterRole")
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {
        "services",
        "pods",
        "namespaces",
        "endpointslices",
    }


def test_replacing_changes_what_its_file_says_and_nothing_else() -> None:
    assert sorted((obj["kind"], obj["metadata"]["name"]) for obj in rendered("overlays/replace-coredns")) == [
        ("Deployment", "coredns"), ("PodDisruptionBudget", "coredns"),
    ]  # fmt: skip


def test_no_network_policy_comes_unasked_and_the_one_there_is_holds_kdns_alone(tmp_path: Path) -> None:
    assert not any(obj["kind"] == "NetworkPolicy" for tree in TREES for obj in rendered(tree))
    found = yaml.safe_load((DEPLOY / "components/network-policy/networkpolicy.yaml").read_text())
    kubernetes_validate.validate(found, "1.31", strict=True)
    labels = one("base", "Deployment")["spec"]["template"]["metadata"]["labels"]
    selector = found["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= labels.items() and not selector.items() <= {"k8s-app": "kube-dns"}.items()
    # Stub domains, upstreams and the API have ports that nobody can know here.
    assert found["spec"]["policyTypes"] == ["Ingress"]
    ports = {each["port"] for each in found["spec"]["ingress"][0]["ports"]}
    probed = {
        port["containerPort"]
        for port in one("base", "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert probed <= ports


def test_one_place_names_the_image_and_all_others_say_the_same() -> None:
    top = DEPLOY.parent
    (image,) = yaml.safe_load((DEPLOY / "components/image/kustomization.yaml").read_text())["images"]
    name = f"{image['newName']}:{image['newTag']}"
    assert image["newTag"] == kdns.__version__
    for tree in TREES:
        for obj in rendered(tree):
            for found in re.findall(r'"image": "([^"]+)"', json.dumps(obj)):
                assert found == name, tree
    chart = yaml.safe_load((DEPLOY / "helm/kdns/Chart.yaml").read_text())
    values = yaml.safe_load((DEPLOY / "helm/kdns/values.yaml").read_text())
    assert f"{values['image']['repository']}:{chart['appVersion']}" == name and values["image"]["tag"] == ""
    texts = [top / "README.md", top / "docker/Dockerfile", *top.glob("docs/*.md"), *DEPLOY.rglob("*.yaml")]
    for path in texts:
        for found in re.findall(r"\bkdns:(\d[\w.]*)", path.read_text()):
            assert found == image["newTag"], path
    done = subprocess.run(["make", "-n", "image", "ENGINE=engine"], cwd=top, capture_output=True, text=True, check=True)
    assert f"engine build -f docker/Dockerfile -t {name} ." in done.stdout


def test_the_charts_list_of_what_is_not_built_is_the_servers() -> None:
    assert (DEPLOY / "helm/kdns/not-built.txt").read_text().split() == not_built(), "run make docs"


def test_the_dashboard_shows_whatever_job_the_servers_have() -> None:
    dashboard = json.loads(one("overlays/monitoring", "ConfigMap")["data"]["dashboard.json"])
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["job"]["query"] == "label_values(coredns_build_info, job)" and variables["job"]["includeAll"]
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert not any('job="' in text for text in expressions) and sum('job=~"$job"' in text for text in expressions) > 15


def test_what_scrapes_selects_the_service_and_its_port_and_the_pods_and_theirs() -> None:
    monitor = one("overlays/monitoring", "ServiceMonitor")["spec"]
    service = one("base", "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    pods = yaml.safe_load((DEPLOY / "overlays/monitoring/podmonitor.yaml").read_text())["spec"]
    template = one("base", "Deployment")["spec"]["template"]
    assert pods["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert pods["podMetricsEndpoints"][0]["port"] in {
        port["name"] for port in template["spec"]["containers"][0]["ports"]
    }


def test_replacing_touches_neither_the_corefile_nor_the_service() -> None:
    kinds = {obj["kind"] for obj in rendered("overlays/replace-coredns")}
    assert "ConfigMap" not in kinds and "Service" not in kinds and "Deployment" in kinds


def beside(tree: str, data: dict[str, str], folder: Path) -> Path:
    """The Corefile of a Deployment's ConfigMap with `data`, in a folder as the kubelet would fill it."""
    spec = one(tree, "Deployment")["spec"]["template"]["spec"]
    volume = next(each["configMap"] for each in spec["volumes"] if each["name"] == "config-volume")
    assert volume["name"] == "coredns"
    for key, text in data.items():
        if not volume.get("items") or key in {each["key"] for each in volume["items"]}:
            (folder / key).write_text(text)
    return folder / "Corefile"


def in_a_cluster() -> dict[str, str]:
    """The ConfigMap's data of docs/plugins.md."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY.parent / "docs/plugins.md").read_text(), re.S)
    data: dict[str, str] = yaml.safe_load(text)["data"]
    return data


@pytest.mark.parametrize("tree", ["base", "overlays/replace-coredns", "overlays/side-by-side"])
def test_keys_beside_the_corefile_were_not_mounted_so_a_plugins_file_was_missing(tree: str, tmp_path: Path) -> None:
    corefile = beside(tree, {**in_a_cluster(), "NodeHosts": "192.0.2.7 node-1\n"}, tmp_path)
    build.build(build.read(corefile.read_text(), str(corefile)))
    assert (tmp_path / "NodeHosts").exists()


KUBEADM = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  template:
    spec:
      containers: [{name: coredns, image: coredns}]
      volumes:
        - name: other
          emptyDir: {}
        - name: config-volume
          configMap:
            name: coredns
            items: [{key: Corefile, path: Corefile}]
"""


def volumes_after(patch: str, folder: Path) -> list[dict[str, Any]]:
    """The volumes of kubeadm's Deployment once it has been patched."""
    (folder / "kubeadm.yaml").write_text(KUBEADM)
    words = ["kubectl", "patch", "--local", "-f", str(folder / "kubeadm.yaml"), "-p", patch, "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["spec"]["template"]["spec"]["volumes"]
    return found


def test_the_documented_patch_lets_kubeadms_deployment_mount_every_key(tmp_path: Path) -> None:
    page = (DEPLOY.parent / "docs/plugins.md").read_text()
    (patch,) = re.findall(r"kubectl -n kube-system patch deployment coredns -p \\\n +'(.*)'", page)
    assert volumes_after(patch, tmp_path) == [
        {"name": "other", "emptyDir": {}}, {"name": "config-volume", "configMap": {"name": "coredns"}}
    ]  # fmt: skip


def test_replacing_takes_the_list_of_keys_from_kubeadms_deployment(tmp_path: Path) -> None:
    """What an applied manifest does not name stays as it is, so the list is emptied and not left out."""
    (volume,) = one("overlays/replace-coredns", "Deployment")["spec"]["template"]["spec"]["volumes"]
    patch = json.dumps({"spec": {"template": {"spec": {"volumes": [volume]}}}})
    (found,) = (each for each in volumes_after(patch, tmp_path) if each["name"] == "config-volume")
    assert found["configMap"] == {"name": "coredns", "items": []}


def test_side_by_side_shares_no_name_selector_or_address_with_what_is_there() -> None:
    base = {(obj["kind"], obj["metadata"]["name"]) for obj in rendered("base")}
    beside = rendered("overlays/side-by-side")
    assert not base & {(obj["kind"], obj["metadata"]["name"]) for obj in beside}
    service = one("overlays/side-by-side", "Service")
    assert service["spec"]["selector"] == {"k8s-app": "kdns"} and "clusterIP" not in service["spec"]
    spec = one("overlays/side-by-side", "Deployment")["spec"]
    assert (
        spec["selector"]["matchLabels"] == {"k8s-app": "kdns"}
        and spec["template"]["spec"]["volumes"][0]["configMap"]["name"] == "coredns"
    )
    binding = one("overlays/side-by-side", "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == "kdns-system:coredns" and binding["subjects"][0]["name"] == "kdns-coredns"


@pytest.mark.parametrize("text", [K3S, AKS], ids=["k3s", "aks"])
def test_side_by_side_left_out_what_k3s_and_aks_import_from_coredns_custom(text: str, tmp_path: Path) -> None:
    spec = one("overlays/side-by-side", "Deployment")["spec"]["template"]["spec"]
    volumes = {each["name"]: each["configMap"] for each in spec["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in spec["containers"][0]["volumeMounts"]}
    assert mounts == {
        "/etc/coredns": {"name": "coredns"}, "/etc/coredns/custom": {"name": "coredns-custom", "optional": True}
    }  # fmt: skip
    # Both ConfigMaps as they are then mounted, and the first alone.
    text = text.replace("/etc/coredns", str(tmp_path))
    corefile = beside("overlays/side-by-side", {"Corefile": text, "NodeHosts": "192.0.2.7 node-1\n"}, tmp_path)
    before = build.build(build.read(text, str(corefile)))
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "one.override").write_text("log\n")
    (tmp_path / "custom" / "two.server").write_text("corp.example.:53 {\n whoami\n}\n")
    after = build.build(build.read(text, str(corefile)))
    assert len(after.blocks) == len(before.blocks) + 1
    assert ["log" in each.blocks[0].query_plugins() for each in (before, after)] == [False, True]


def test_side_by_side_runs_the_clusters_own_corefile_and_compares_both() -> None:
    assert "ConfigMap" not in {obj["kind"] for obj in rendered("overlays/side-by-side")}
    job = one("overlays/side-by-side", "CronJob")
    assert job["metadata"]["name"] == "kdns-compare" and job["metadata"]["namespace"] == "kube-system"
    spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "kdns-coredns" and spec["restartPolicy"] == "Never"
    (container,) = spec["containers"]
    assert container["image"] == f"kdns:{kdns.__version__}" and container["securityContext"]["readOnlyRootFilesystem"]
    services = {"kube-dns", one("overlays/side-by-side", "Service")["metadata"]["name"]}
    values, words = parse_among(container["args"][1:], compare.FLAGS)
    assert (
        container["args"][0] == "compare"
        and {word.removeprefix("@") for word in words} == services
        and values["rate"] == 100
    )


# Monitoring.


def series() -> set[str]:
    """Every series that kdns has, histograms' parts too."""
    for name in catalog.built():
        catalog.plugin_class(name)
    out = set(OWN)
    for name, family in REGISTRY.items():
        out |= {name + suffix for suffix in ("", "_bucket", "_sum", "_count")} if family.kind == "histogram" else {name}
    return out


def test_alerts_and_dashboard_ask_for_series_that_are_there() -> None:
    rule = one("overlays/monitoring", "PrometheusRule")
    expressions = [alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]]
    dashboard = json.loads(one("overlays/monitoring", "ConfigMap")["data"]["dashboard.json"])
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {
        name
        for text in expressions
        for name in re.findall(r"\b((?:coredns|kdns|process)_[a-z_]+|up)\b(?=[{\[) ]|$)", text)
    }
    assert len(asked) > 15 and not asked - series()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_on_what_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": one("overlays/monitoring", "PrometheusRule")["spec"]["groups"]})
    )
    shutil.copy(DEPLOY / "overlays/monitoring/rules.test.yaml", tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_reads_all_metrics_and_finds_no_fault_of_ours(serve: Any) -> None:
    port, up = free_port(), free_port()
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n prometheus 127.0.0.1:{port}\n errors\n log\n loadbalance\n cache 30\n"
        f" forward . 127.0.0.1:{up} {{\n read_timeout 50ms\n }}\n reload\n}}"
    )
    for name in ("x.org.", 'we\\"ird\\010.org.'):
        server.ask(name)
    text = http_get(port, "/metrics")[1]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert "error while linting" not in done.stderr and "parsing error" not in done.stderr
    # CoreDNS's names stay, also where promtool would have others.
    ours = [line for line in done.stderr.splitlines() if line.startswith("kdns_")]
    assert not ours, ours


def test_a_component_gives_the_servers_a_folder_to_write_to(tmp_path: Path) -> None:
    base, component = (os.path.relpath(DEPLOY / path, tmp_path) for path in ("base", "components/writable"))
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base], "components": [component]}))
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (deployment,) = (each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment")
    kubernetes_validate.validate(deployment, "1.31", strict=True)
    spec = deployment["spec"]["template"]["spec"]
    writable = [each for each in spec["containers"][0]["volumeMounts"] if not each.get("readOnly")]
    assert writable == [{"name": "writable", "mountPath": "/var/lib/coredns"}]
    assert {"name": "writable", "emptyDir": {"sizeLimit": "256Mi"}} in spec["volumes"]
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert spec["securityContext"] == {
        "fsGroup": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}
    }  # fmt: skip
