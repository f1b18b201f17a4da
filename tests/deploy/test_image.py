"""What can be proved of the image in a moment (`make image-proof` builds it): its recipe, the slimmed packages, port
53.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hatch_build

TOP = Path(__file__).resolve().parents[2]
RECIPE = (TOP / "docker" / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", RECIPE)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip() and not line.startswith("#")]  # type: ignore[misc]


def test_the_recipe_ends_as_an_image_should() -> None:
    last = instructions()
    final = last[max(i for i, (word, _) in enumerate(last) if word == "FROM") :]
    assert ("USER", "65532:65532") in final
    entry = dict(final)["ENTRYPOINT"]
    assert entry == '["/usr/bin/python3.13", "-m", "kdns"]'  # no shell: it would lose the capability
    assert not any(word in ("RUN", "SHELL", "ADD", "CMD") for word, _ in final)
    for word, text in last:
        assert word in ("FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT")
        if word == "FROM":
            assert ":" in text.split()[0]
        if word == "RUN" and "apt-get install" in text:
            assert "rm -rf /var/lib/apt/lists" in text


def test_hadolint_finds_nothing_in_the_recipe() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(hadolint), "--no-color", str(TOP / "docker" / "Dockerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_recipe_copies_is_there_and_not_kept_out() -> None:
    ignored = (TOP / ".dockerignore").read_text().split()
    for word, text in instructions():
        if word == "COPY" and "--from" not in text:
            for name in text.split()[:-1]:
                assert (TOP / name).exists() and f"!{name.removeprefix('./').split('/')[0]}" in ignored, name


def locked(name: str) -> dict[str, str]:
    """Names and versions of a list of packages with hashes."""
    text = (TOP / "docker" / name).read_text()
    assert "://" not in text and text.count("--hash=sha256:") >= text.count("==")
    entries = re.findall(r"^(\S+)==(\S+)[^\n]*\\\n    --hash", text, re.M)
    assert len(entries) == text.count("==") - len(re.findall(r"; .*==", text))
    return dict(entries)


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_what_the_image_installs_is_locked_within_the_bounds_of_the_project(name: str) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *extras["auth"], *extras["quic"]]
    if name == "build-requirements.txt":
        asked = [*project["build-system"]["requires"], *hatch_build.NEEDS]
    versions = locked(name)
    for requirement in map(Requirement, asked):
        found = versions[requirement.name.lower()]
        assert requirement.specifier.contains(found), f"{requirement} against {found}: run make lock"


def test_the_slimmed_package_still_reads_configurations(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    shutil.copytree(
        Path(sysconfig.get_paths()["purelib"]) / "kubernetes",
        site / "kubernetes",
        ignore=shutil.ignore_patterns("*.pyc"),
    )
    done = subprocess.run(
        [sys.executable, str(TOP / "docker" / "slim.py"), str(site)], capture_output=True, text=True, check=True
    )
    assert re.search(r"\d+ MB -> [0-9] MB", done.stdout), done.stdout
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: "
        "'https://10.0.0.1'}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: secret}}]\n"
    )
    program = (
        "from kdns.kube.access import ApiConfig\nimport kubernetes\nassert 'site' in kubernetes.__file__\n"
        f"access = ApiConfig.load(endpoint='', tls=None, kubeconfig={str(config)!r}, "
        f"context='').access()\nprint(access.url, access.headers)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{site}:{TOP}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
    assert done.stdout == "https://10.0.0.1 {'Authorization': 'Bearer secret'}\n", done.stderr


# Starts a program as a container runtime does under `allowPrivilegeEscalation: false`: no_new_privs is set, under which
# a file's capability gives nothing new; but NET_BIND_SERVICE, which the Pod adds, is held until the exec, so it stays.
RUNTIME = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
KEEPCAPS, BOUNDING_DROP, NO_NEW_PRIVS, NET_BIND = 8, 24, 38, 10
for capability in range(41):
    if capability != NET_BIND:
        libc.prctl(BOUNDING_DROP, capability, 0, 0, 0)
assert libc.prctl(KEEPCAPS, 1, 0, 0, 0) == 0
os.setgroups([])
os.setresgid(65532, 65532, 65532)
os.setresuid(65532, 65532, 65532)
mask = 1 << NET_BIND
assert libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", mask, mask, 0, 0, 0, 0)) == 0
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], [sys.argv[1], "-c", sys.argv[2]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file a capability")
@pytest.mark.skipif(not all(map(shutil.which, ("setcap", "setpriv"))), reason="setcap or setpriv is not installed")
def test_an_interpreter_with_the_capability_binds_port_53_as_an_ordinary_user(tmp_path: Path) -> None:
    """As the container does: uid 65532, nothing in the bounding set but NET_BIND_SERVICE, the interpreter exec'd
    directly.
    """
    system = Path("/usr/bin/python3")
    if not system.exists():
        pytest.skip("there is no system interpreter that every user may run")
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.77", 53))
        except OSError as error:
            pytest.skip(str(error))
    folder = Path("/opt/kdns-image-test")
    folder.mkdir(exist_ok=True)
    try:
        python = folder / "python3"
        shutil.copy(system.resolve(), python)
        program = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.77', 53)); print('bound')"
        words = [
            "setpriv",
            "--reuid=65532",
            "--regid=65532",
            "--clear-groups",
            "--bounding-set=-all,+net_bind_service",
            "--inh-caps=-all",
        ]
        plain = subprocess.run([*words, str(python), "-c", program], capture_output=True, text=True, check=False)
        subprocess.run(["setcap", "cap_net_bind_service=+ep", str(python)], check=True)
        done = subprocess.run([*words, str(python), "-c", program], capture_output=True, text=True, check=False)
        through_shell = subprocess.run(
            [*words, "sh", "-c", f'exec {python} -c "$0"', program], capture_output=True, text=True, check=False
        )
        assert done.stdout == through_shell.stdout == "bound\n", done.stderr
        runtime = subprocess.run(
            [sys.executable, "-c", RUNTIME, str(python), program], capture_output=True, text=True, check=False
        )
        assert runtime.stdout == "bound\n", runtime.stderr
        unprivileged = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        assert unprivileged <= 53 or "PermissionError" in plain.stderr
    finally:
        shutil.rmtree(folder)
