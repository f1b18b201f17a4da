"""Objects from YAML: followed while running, and a broken file keeps its last good state."""

import asyncio
import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dns.query
import dns.xfr
import dns.zone
import pytest
import yaml

from kdns import watchfile
from kdns.kube import manifests as module
from kdns.kube.cluster import Cluster
from kdns.kube.manifest_file import BrokenManifest, parse
from kdns.kube.manifests import ManifestSource
from kdns.kube.objects import BadObject, pack
from kdns.kube.source import WatchScope
from kdns.testing import Server, block, code, data, eventually
from kdns.testing.objects import endpoint, endpointslice, namespace, service
from tests.fixtures import Serve


def start(serve: Serve, *paths: Path) -> Server:
    words = " ".join(str(path) for path in paths)
    return serve(f".:{{port}} {{\n bind 127.0.0.1\n kubernetes cluster.local {{\n manifests {words}\n }}\n}}\n")


def a(server: Server, name: str) -> list[str] | str:
    reply = server.ask(f"{name}.svc.cluster.local.")
    return data(reply) if reply.answer else code(reply)


def test_a_change_of_a_file_shows_within_100_ms(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    server = start(serve, path)
    assert a(server, "web.n1") == ["10.0.0.1"]
    took = []
    for i in range(2, 7):
        path.write_text(yaml.safe_dump(service("n1/web", f"10.0.0.{i}")))
        began = time.monotonic()
        eventually(lambda i=i: a(server, "web.n1") == [f"10.0.0.{i}"], step=0.002)
        took.append(time.monotonic() - began)
    assert min(took) < 0.1  # what else this machine does makes some of them later, and none sooner


def test_folders_are_followed_with_what_comes_and_goes(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(service("n1/a", "10.0.0.1")))
    (tmp_path / "sub" / "b.yml").write_text(yaml.safe_dump(service("n1/b", "10.0.0.2")))
    (tmp_path / "notes.txt").write_text("not: yaml: at: all")
    server = start(serve, tmp_path)
    assert (a(server, "a.n1"), a(server, "b.n1")) == (["10.0.0.1"], ["10.0.0.2"])
    (tmp_path / "c.json").write_text(
        '{"kind":"Service","metadata":{"name":"c","namespace":"n1"},"spec":{"clusterIP":"10.0.0.3"}}'
    )
    eventually(lambda: a(server, "c.n1") == ["10.0.0.3"])
    os.unlink(tmp_path / "a.yaml")
    eventually(lambda: a(server, "a.n1") == "NXDOMAIN")
    assert a(server, "b.n1") == ["10.0.0.2"]


def test_a_link_that_is_swapped_like_a_configmaps_is_noticed(serve: Serve, tmp_path: Path) -> None:
    for version in (1, 2):
        folder = tmp_path / f"..v{version}"
        folder.mkdir()
        (folder / "all.yaml").write_text(yaml.safe_dump(service("n1/web", f"10.0.0.{version}")))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "all.yaml").symlink_to("..data/all.yaml")
    server = start(serve, tmp_path)
    assert a(server, "web.n1") == ["10.0.0.1"]
    (tmp_path / "..new").symlink_to("..v2")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    eventually(lambda: a(server, "web.n1") == ["10.0.0.2"])


def test_a_broken_file_keeps_the_last_good_state_and_says_which_line(
    serve: Serve, tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    server = start(serve, path)
    path.write_text("kind: Service\nmetadata: {name: web\nspec: [\n")
    eventually(lambda: any(f"{path}:3" in line and "last good state" in line for line in lines))
    assert a(server, "web.n1") == ["10.0.0.1"]
    path.unlink()
    eventually(lambda: any("the file is gone" in line for line in lines))
    assert a(server, "web.n1") == ["10.0.0.1"]
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.2")))
    eventually(lambda: a(server, "web.n1") == ["10.0.0.2"])


def test_an_object_that_cannot_be_served_is_named_with_its_line(serve: Serve, tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "two.yaml"
    good = "kind: Service\nmetadata: {name: good}\nspec: {clusterIP: 10.0.0.1}\n"
    path.write_text(good + "---\nkind: Service\nmetadata: {name: bad}\nspec: {clusterIP: 10.0.0}\n")
    server = start(serve, path)
    assert a(server, "good.default") == ["10.0.0.1"] and a(server, "bad.default") == "NXDOMAIN"
    assert any(f"{path}:5: Service rejected" in line for line in lines)


def test_lists_as_kubectl_prints_them_are_read() -> None:
    text = yaml.safe_dump({"kind": "List", "items": [service("n1/a", "10.0.0.1"), namespace("n1")]})
    assert [item.kind for item in parse(text, "f")[0]] == ["Service", "Namespace"]
    plain = {"kind": "ServiceList", "items": [{"metadata": {"name": "x"}, "spec": {}}]}
    assert [item.kind for item in parse(yaml.safe_dump(plain), "f")[0]] == ["Service"]
    assert parse("---\n---\n", "f") == ([], [])


@pytest.mark.parametrize(
    "text", ["{", "a: [", "\t- x", "a: &x [*x", "!!python/object:os.system x", "\x00", "key: 'open"]
)
def test_what_is_no_yaml_is_refused_with_file_and_line(text: str) -> None:
    with pytest.raises(BrokenManifest, match=r"^f:\d+: "):
        parse(text, "f")


@pytest.mark.parametrize("text", ["just text", "- a\n- b", "42", "kind: 7", "metadata: {}"])
def test_yaml_that_is_no_object_is_told(text: str) -> None:
    found, odd = parse(text, "f")
    assert not found and odd


def test_other_kinds_are_passed_over() -> None:
    assert parse("kind: Deployment\nmetadata: {name: x}\n", "f") == ([], [])


def test_an_object_that_moves_to_another_file_never_blinks(serve: Serve, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(yaml.safe_dump_all([service("n1/web", "10.0.0.1"), service("n1/x", "10.0.0.7")]))
    server = start(serve, tmp_path)
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            found = a(server, "web.n1")
            if found != ["10.0.0.1"]:
                wrong.append(found)

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(3):
        two.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
        one.write_text(yaml.safe_dump(service("n1/x", "10.0.0.7")))
        time.sleep(0.15)
        one.write_text(yaml.safe_dump_all([service("n1/web", "10.0.0.1"), service("n1/x", "10.0.0.7")]))
        time.sleep(0.15)
        two.unlink()
        time.sleep(0.15)
    stop.set()
    thread.join()
    assert not wrong


def test_a_large_file_is_parsed_in_a_child_and_answers_go_on(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INLINE", 1000)
    path = tmp_path / "big.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    server = start(serve, path)
    objects = [service(f"n1/s{i}", f"10.0.{i // 250}.{i % 250 + 1}") for i in range(500)]
    slices = [endpointslice(f"n1/s{i}-1", f"s{i}", endpoint(f"10.1.{i // 250}.{i % 250}")) for i in range(500)]
    path.write_text(yaml.safe_dump_all([*objects, *slices]))
    eventually(lambda: a(server, "s499.n1") == ["10.0.1.250"], timeout=20)
    eventually(lambda: a(server, "web.n1") == "NXDOMAIN")
    path.write_text("{")
    time.sleep(0.2)
    path.write_text("x: [" + "y, " * 1000)
    time.sleep(0.5)
    assert a(server, "s1.n1") == ["10.0.0.2"]


def test_a_file_whose_writer_pauses_after_truncating_it_keeps_its_objects_and_one_that_stays_empty_loses_them(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.yaml"
    text = yaml.safe_dump(service("n1/web", "10.0.0.1"))
    path.write_text(text)
    server = start(serve, path)
    with path.open("w") as file:
        for _ in range(10):
            time.sleep(0.03)
            assert a(server, "web.n1") == ["10.0.0.1"]
        file.write(text.replace("10.0.0.1", "10.0.0.2"))
    eventually(lambda: a(server, "web.n1") == ["10.0.0.2"])
    monkeypatch.setattr(watchfile, "EMPTY", 1)
    path.write_text("")
    eventually(lambda: a(server, "web.n1") == "NXDOMAIN")


def test_a_file_that_is_truncated_before_it_is_written_again_never_empties_the_zone(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "one.yaml"
    text = yaml.safe_dump(service("n1/web", "10.0.0.1"))
    path.write_text(text)
    server = start(serve, path)
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            found = a(server, "web.n1")
            if found != ["10.0.0.1"]:
                wrong.append(found)

    thread = threading.Thread(target=load)
    thread.start()
    for i in range(100):
        with path.open("w") as file:
            time.sleep(0.005)
            file.write(text + f"# {i}\n")
    stop.set()
    thread.join()
    assert not wrong


def test_a_child_that_read_a_file_outlived_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left to run when the source was stopped: its pipes stood open, and it read on for nobody."""
    path, script, told = tmp_path / "one.yaml", tmp_path / "child", tmp_path / "pid"
    script.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}\nexec sleep 60\n")
    script.chmod(0o755)
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1")))
    monkeypatch.setattr(module, "INLINE", 10)

    async def run() -> None:
        source = ManifestSource((str(path),), WatchScope(), Cluster())
        await source.start()
        monkeypatch.setattr(sys, "executable", str(script))
        path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.2")))
        while not told.exists():
            await asyncio.sleep(0.01)
        await source.stop()

    asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


# Names that no label can be: a manifest may hold what no API server lets through.


LONG = "h" * 64


def test_what_one_file_held_no_more_stayed_for_ever_where_another_could_not_be_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process could be started for the second."""
    one, two = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one.write_text(yaml.safe_dump_all([service("n1/gone", "10.0.0.1"), service("n1/kept", "10.0.0.2")]))
    two.write_text(yaml.safe_dump(service("n1/large", "10.0.0.3")))
    parsed, failed = module._parsed_by_child, list[str]()

    async def fails(path: str) -> list[module.Found]:
        if not failed:
            failed.append(path)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await parsed(path)

    monkeypatch.setattr(module, "_parsed_by_child", fails)

    async def run() -> None:
        cluster = Cluster()
        source = ManifestSource((str(tmp_path),), WatchScope(), cluster)
        await source._take(source.follower.look())
        source.follower.keep = 400
        one.write_text(yaml.safe_dump(service("n1/kept", "10.0.0.2")))
        two.write_text(yaml.safe_dump(service("n1/large", "10.0.0.4")) + "# large\n" * 100)
        with pytest.raises(BlockingIOError):
            await source._take(found := await settled(source))
        assert [Path(change.path).name for change in found] == ["a.yaml", "b.yaml"]
        source.follower.forget(found)
        await source._take(await settled(source))
        assert sorted(cluster.entries) == ["n1/kept", "n1/large"]

    async def settled(source: ManifestSource) -> list[watchfile.Change]:
        found: list[watchfile.Change] = []
        while len(found) < 2:
            found += await source.follower.changes()
        return found

    asyncio.run(run())
    assert failed == [str(two)]


def served(serve: Serve, tmp_path: Path, *objects: dict[str, Any]) -> Server:
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump_all(objects, allow_unicode=True))
    zone = "cluster.local in-addr.arpa"
    return serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n kubernetes {zone} {{\n manifests {path}\n }}\n}}\n"
    )


@pytest.mark.parametrize("host", [LONG, "h" * 256, "\u00e4", "\u00e4" * 32, "a.b", "h" * 5000])
def test_an_endpoint_whose_hostname_is_no_label_broke_its_service(
    serve: Serve, tmp_path: Path, lines: list[str], host: str
) -> None:
    server = served(
        serve, tmp_path, service("n1/db"),
        endpointslice("n1/db-1", "db", endpoint("10.1.0.1", host="h" * 63), endpoint("10.1.0.2", host=host),
            endpoint("10.1.0.3")),
    )  # fmt: skip
    assert a(server, "db.n1") == ["10.1.0.1", "10.1.0.3"]
    reply = server.ask("_http._tcp.db.n1.svc.cluster.local.", "SRV")
    assert sorted(str(rr.target) for rr in reply.answer[0]) == [
        "10-1-0-3.db.n1.svc.cluster.local.", f"{'h' * 63}.db.n1.svc.cluster.local.",
    ]  # fmt: skip
    assert code(server.ask("2.0.1.10.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    assert data(server.ask("1.0.1.10.in-addr.arpa.", "PTR")) == [f"{'h' * 63}.db.n1.svc.cluster.local."]
    said = [line for line in lines if "10.1.0.2 rejected" in line]
    assert len(said) == 1 and "hostname" in said[0] and len(said[0]) < 300


def test_a_service_or_namespace_whose_name_is_no_label_is_reject(
    serve: Serve, tmp_path: Path, lines: list[str]
) -> None:
    server = served(
        serve, tmp_path, service("n1/web", "10.0.0.1"), service(f"n1/{LONG}", "10.0.0.2"),
        service(f"{LONG}/web", "10.0.0.3"),
        service(f"n1/{LONG}x"), endpointslice("n1/x-1", f"{LONG}x", endpoint("10.1.0.9")),
    )  # fmt: skip
    assert a(server, "web.n1") == ["10.0.0.1"]
    for reverse in ("2.0.0.10", "3.0.0.10", "9.0.1.10"):
        assert code(server.ask(f"{reverse}.in-addr.arpa.", "PTR")) == "NXDOMAIN"
    assert any("rejected" in line and LONG in line for line in lines)
    assert len(transferred(server)) > 3


def test_a_port_whose_name_makes_no_label_broke_the_zones_transfer(serve: Serve, tmp_path: Path) -> None:
    ports = (
        ("p" * 62, "TCP", 1),
        ("p" * 63, "TCP", 2),
        ("p" * 300, "TCP", 3),
    )  # with its underscore, 63 octets at most
    server = served(
        serve, tmp_path, service("n1/web", "10.0.0.1", ports=ports), service("n1/db"),
        endpointslice("n1/db-1", "db", endpoint("10.1.0.1"), ports=ports),
    )  # fmt: skip
    names = {name.split(".")[0] for name in transferred(server) if name.startswith("_")}
    assert names == {f"_{'p' * 62}"}
    assert len(server.ask("web.n1.svc.cluster.local.", "SRV").answer[0]) == 3


def test_nor_does_it_break_the_zone_of_addresses_outside(serve: Serve, tmp_path: Path) -> None:
    ports = (("p" * 62, "TCP", 1), ("p" * 63, "TCP", 2))
    path = tmp_path / "outside.yaml"
    path.write_text(yaml.safe_dump(service("n1/web", "10.0.0.1", ports=ports, externalIPs=["::ffff:192.0.2.1"])))
    server = serve(
        f".:{{port}} {{\n bind 127.0.0.1\n transfer {{\n to *\n }}\n kubernetes cluster.local {{\n manifests {path}\n "
        f"}}\n"
        " k8s_external ext.org\n}\n"
    )
    assert {name.split(".")[0] for name in transferred(server, "ext.org.") if name.startswith("_")} == {f"_{'p' * 62}"}
    assert data(server.ask("web.n1.ext.org.")) == ["192.0.2.1"]


def transferred(server: Server, origin: str = "cluster.local.") -> list[str]:
    """The owners of a transfer's records, as an independent client reads them."""
    zone = dns.zone.Zone(origin, relativize=False)
    query, _ = dns.xfr.make_query(zone)
    dns.query.inbound_xfr("127.0.0.1", zone, query, port=server.port, timeout=5, lifetime=10)
    return [str(name) for name in zone]


def test_ipv4_addresses_in_ipv6_form_were_taken_for_ipv6(serve: Serve, tmp_path: Path) -> None:
    server = served(
        serve, tmp_path, service("n1/web", "::ffff:10.0.0.1"), service("n1/db"),
        endpointslice("n1/db-1", "db", endpoint("::ffff:10.1.0.1")),
    )  # fmt: skip
    assert a(server, "web.n1") == ["10.0.0.1"] and a(server, "db.n1") == ["10.1.0.1"]
    assert code(server.ask("web.n1.svc.cluster.local.", "AAAA")) == "NODATA"
    assert data(server.ask("1.0.0.10.in-addr.arpa.", "PTR")) == ["web.n1.svc.cluster.local."]
    assert data(server.ask("1.0.1.10.in-addr.arpa.", "PTR")) == ["10-1-0-1.db.n1.svc.cluster.local."]


def test_an_address_with_leading_zeros_as_the_api_takes_it_cost_its_object_all_names(
    serve: Serve, tmp_path: Path, lines: list[str]
) -> None:
    web = service("n1/web", "10.0.0.1")
    web["spec"]["externalIPs"] = ["203.000.113.009"]
    slices = endpointslice("n1/db-1", "db", endpoint("10.244.001.010"), endpoint("10.244.0.2"))
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump_all([web, service("n1/old", "010.000.000.002"), service("n1/db", "None"), slices])
    )
    server = serve(block(f"kubernetes cluster.local {{\n manifests {tmp_path / 'm.yaml'}\n }}", "k8s_external ext.org"))
    assert (a(server, "web.n1"), a(server, "old.n1")) == (["10.0.0.1"], ["10.0.0.2"])
    assert sorted(a(server, "db.n1")) == ["10.244.0.2", "10.244.1.10"]
    assert data(server.ask("web.n1.ext.org.")) == ["203.0.113.9"]
    assert not any("rejected" in line for line in lines)


@pytest.mark.parametrize("text", ["", "0", "10.0.0", "10.0.0.", ".0.0.1", "010.0.0.256", "0x10.0.0.1", "10.0.0.1.0"])
def test_what_is_no_address_with_or_without_zeros_is_refused(text: str) -> None:
    with pytest.raises(BadObject, match="is not an IP address"):
        pack(text)
