"""Whatever the API, a file or a disk holds is read or rejected by its declared error; events in any order end in the
same state.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.kube import decode
from kdns.kube.cluster import Cluster
from kdns.kube.manifest_file import BrokenManifest, parse
from kdns.kube.manifests import ManifestSource
from kdns.kube.objects import RAW, SERVICE, BadObject, from_mapping, project
from kdns.kube.paging import ApiError, ResourceVersionRegressed
from kdns.kube.reflector import Reflector
from kdns.kube.selector import BadSelector
from kdns.kube.selector import parse as parse_selector
from kdns.kube.source import WatchScope
from kdns.testing.objects import service

plain: Any = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
words = st.sampled_from(
    ["kind", "metadata", "name", "namespace", "labels", "spec", "status", "clusterIP", "clusterIPs", "ports", "port",
        "protocol",
     "endpoints", "addresses", "conditions", "ready", "hostname", "addressType", "resourceVersion", "annotations",
     "type",
     "externalName", "items", "IPv4", "10.0.0.1", "fd00::1", "web", "", "ExternalName", "ClusterIP", "None"]
)  # fmt: skip
values = st.recursive(
    plain | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5), max_leaves=14
)
kinds = st.sampled_from(sorted(RAW))


def tree(kind: str, meta: Any, spec: Any, status: Any, endpoints: Any, ports: Any) -> dict[str, Any]:
    """An object of the right form with parts of any."""
    return {"kind": kind, "metadata": meta, "spec": spec, "status": status, "endpoints": endpoints, "ports": ports,
            "addressType": "IPv4"}  # fmt: skip


metas = st.fixed_dictionaries({"name": words | values, "namespace": words}, optional={"labels": values}) | values
trees = st.builds(
    tree, kinds, metas, values, values, st.lists(values, max_size=3) | values, st.lists(values, max_size=2) | values
)


# Objects.


@given(trees)
@settings(max_examples=150, deadline=None)
def test_an_object_of_any_form_is_served_or_reject(made: dict[str, Any]) -> None:
    with contextlib.suppress(BadObject):
        project(from_mapping(made["kind"], made))


@given(kinds, trees | values, st.booleans())
@settings(max_examples=100, deadline=None)
def test_an_event_or_a_page_of_any_form_is_read_or_refused(kind: str, made: Any, in_list: bool) -> None:
    encoded = json.dumps({"metadata": {"resourceVersion": "5"}, "items": [made, made]} if in_list else made).encode()
    with contextlib.suppress(msgspec.DecodeError):
        if in_list:
            assert len(decode.page(kind, encoded)[1]) == 2
        else:
            decode.one(kind, encoded)
    with contextlib.suppress(msgspec.DecodeError):
        decode.bookmark(encoded)
    with contextlib.suppress(msgspec.DecodeError):
        decode.event(encoded)
    decode.status(encoded)


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_octets_that_are_no_json_are_refused(data: bytes) -> None:
    for read in (
        decode.event,
        decode.bookmark,
        lambda raw: decode.page(SERVICE, raw),
        lambda raw: decode.one(SERVICE, raw),
    ):
        with contextlib.suppress(msgspec.DecodeError):
            read(data)
    assert decode.status(data)[0] == 0 or data


@given(st.lists(st.binary(max_size=30), max_size=10), st.lists(st.integers(0, 40), max_size=10), st.integers(8, 40))
@settings(max_examples=100, deadline=None)
def test_lines_are_the_same_however_their_octets_are_cut(parts: list[bytes], cuts: list[int], longest: int) -> None:
    stream = b"\n".join(parts)
    places = sorted({min(cut * 3, len(stream)) for cut in cuts} | {0, len(stream)})

    async def chunks() -> AsyncIterator[bytes]:
        for begin, end in itertools.pairwise(places):
            yield stream[begin:end]

    async def run() -> list[bytes | None]:
        return [line async for line in decode.lines(chunks())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "MAX_LINE", longest)
        found = asyncio.run(run())
    expected = [line for line in stream.split(b"\n")[:-1] if line]  # what no line end follows has not come yet
    assert len(found) == len(expected)
    for line, whole in zip(found, expected, strict=True):
        # How long a line may be counts where it is cut: one within a chunk is there already.
        assert line == whole or (line is None and len(whole) > longest)


# Events.


class NoClient:
    """Who asks nothing of an API."""


steps = st.lists(
    st.tuples(
        st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "junk", "bad"]),
        st.integers(0, 3),
        st.integers(1, 4),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=100, deadline=None)
def test_after_any_events_the_state_is_that_of_the_last_one_of_each_object(taken: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    reflector = Reflector(SERVICE, NoClient(), cluster, {}, WatchScope().project)  # type: ignore[arg-type]
    model: dict[str, str] = {}
    version = ""
    for number, (kind, which, address) in enumerate(taken, 1):
        made = service(f"n1/s{which}", f"10.0.0.{address}")
        made["metadata"]["resourceVersion"] = str(number)
        if kind == "junk":
            with pytest.raises(msgspec.DecodeError):
                reflector._event(b'{"type": 5')
            continue
        if kind == "ERROR":
            for code, message in ((410, "gone"), (500, "Too large resource version: 9"), (503, "later"), (0, "")):
                line = {"type": "ERROR", "object": {"code": code, "message": message}}
                with pytest.raises((ApiError, ResourceVersionRegressed)):
                    reflector._event(json.dumps(line).encode())
            continue
        if kind == "bad":
            made["spec"]["ports"] = 5  # it is rejected; what was served of it before stays
        reflector._event(json.dumps({"type": "MODIFIED" if kind == "bad" else kind, "object": made}).encode())
        version = str(number)
        if kind in ("ADDED", "MODIFIED"):
            model[f"n1/s{which}"] = f"10.0.0.{address}"
        elif kind == "DELETED":
            model.pop(f"n1/s{which}", None)
        assert reflector.version == version
    held = {key: entry.service for key, entry in cluster.entries.items() if entry.service is not None}
    assert {key: [".".join(map(str, packed)) for packed in found.addresses] for key, found in held.items()} == {
        key: [address] for key, address in model.items()
    }


# Manifests.

tags = st.sampled_from(
    [
        "!!int",
        "!!float",
        "!!bool",
        "!!timestamp",
        "!!binary",
        "!!set",
        "!!omap",
        "!!pairs",
        "!!map",
        "!!seq",
        "!!null",
        "!x",
        "!!python/object:os.system",
        "&a",
        "*a",
        "<<:",
        "? ",
        "- ",
        "kind: ",
        "{",
        "}",
        "[",
        "]",
        "|",
        ">",
        "---",
        "'",
        '"',
        "Service",
        "\n",
        "\n  ",
        ": ",
        "#",
        "2024-99-99",
        "0x",
        ".inf",
        "\t",
        "%YAML 1.1",
        "\0",
    ]
)


@given(st.lists(tags | st.text(max_size=4), max_size=14).map(" ".join) | st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_manifest_or_refused_with_its_line(text: str) -> None:
    try:
        found, odd = parse(text, "f.yaml")
    except BrokenManifest as error:
        assert str(error).startswith("f.yaml:")
        return
    assert all(each.kind in RAW for each in found) and all("not a Kubernetes object" in line for line in odd)


@pytest.mark.parametrize("text", ['!!int ""', '!!float ""', "!!bool maybe", "!!timestamp x", "!!timestamp 2024-13-01"])
def test_a_value_that_is_not_of_its_tag_ended_the_reading_of_all_files(text: str) -> None:
    with pytest.raises(BrokenManifest, match=r"^f.yaml:\d+: "):
        parse(f"kind: Service\nmetadata:\n  name: {text}\n", "f.yaml")


@given(st.lists(trees, max_size=4))
@settings(max_examples=80, deadline=None)
def test_manifests_of_any_form_are_served_or_reject(documents: list[dict[str, Any]]) -> None:
    try:
        text = yaml.safe_dump_all(documents)
    except (yaml.YAMLError, ValueError):
        return
    with contextlib.suppress(BrokenManifest):
        found, _ = parse(text, "f.yaml")
        source = ManifestSource((), WatchScope(pods=True, imports=True), Cluster())
        for held in (found, []):
            list(source._apply("f.yaml", held))
            while source.gone:
                source.cluster.apply(*source.gone.pop(), None)
        assert not any(entry.service for entry in source.cluster.entries.values())


@given(st.text(alphabet="ab=!,()in notexs", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    with contextlib.suppress(BadSelector):
        assert parse_selector(text).matches({"a": "b"}) in (True, False)
