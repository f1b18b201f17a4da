"""prometheus: what is counted, and how it is written out."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kdns import metrics
from kdns.testing import (
    block,
    code,
    data,
    free_port,
    http_get,
)
from tests.fixtures import Serve


def test_metrics_count_queries_as_coredns_does(serve: Serve) -> None:
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "whoami"))
    for _ in range(5):
        server.ask("example.org.", "A")
    server.ask("example.org.", "MX", tcp=True, use_edns=0, want_dnssec=True)
    server.ask("example.org.", "TYPE65280")
    server.ask("example.org.", "A", rdclass="CH")
    status, text = http_get(port, "/metrics")
    assert status == 200
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip

    def value(metric: str, **labels: str) -> float:
        base = {"server": f"dns://127.0.0.1:{server.port}", "zone": ".", "view": ""}
        return values[(metric, tuple(sorted({**base, **labels}.items())))]

    assert value("coredns_dns_requests_total", proto="udp", family="1", type="A") == 5
    assert value("coredns_dns_requests_total", proto="tcp", family="1", type="MX") == 1
    assert value("coredns_dns_requests_total", proto="udp", family="1", type="other") == 1
    assert value("coredns_dns_requests_total", proto="udp", family="1", type="A", zone="dropped") == 1
    assert value("coredns_dns_responses_total", rcode="NOERROR", plugin="errors") == 7
    assert value("coredns_dns_responses_total", rcode="REFUSED", plugin="", zone="dropped") == 1
    assert value("coredns_dns_do_requests_total") == 1
    assert value("coredns_dns_request_duration_seconds_count") == 7
    assert value("coredns_dns_request_size_bytes_count", proto="udp") == 6
    assert value("coredns_dns_response_size_bytes_count", proto="tcp") == 1
    assert value("coredns_plugin_enabled", name="whoami") == 1
    assert values[("coredns_panics_total", ())] >= 0
    assert any(name == "coredns_build_info" for name, _ in values)
    process = {name for name, _ in values if name.startswith("process_")}
    assert process == {
        "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
        "process_start_time_seconds", "process_virtual_memory_bytes", "process_virtual_memory_max_bytes",
        "process_network_receive_bytes_total", "process_network_transmit_bytes_total",
    }  # fmt: skip


def test_a_family_of_many_zones_is_written_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One family of 40 zones held the loop for 10 ms."""
    registry: dict[str, metrics.Family] = {}
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    monkeypatch.setattr(metrics, "REFRESH", [])
    sizes = metrics.Histogram("x_size_bytes", "Sizes.", (1, 2, 4), ("zone",))
    count = metrics.Counter("x_total", "Count.", ("zone",))
    for i in range(500):
        sizes.observe(sizes.slot(f"z{i}"), i % 5)
        count.slot(f"z{i}")[0] += i
    slices = list(metrics.families())
    assert max(text.count(b"\n") for text in slices) <= metrics.SLICE + 2
    text = b"".join(slices).decode()
    assert text.count("# TYPE x_size_bytes histogram") == text.count("# TYPE x_total counter") == 1
    found = {family.name: len(family.samples) for family in text_string_to_metric_families(text)}
    assert found == {"x_size_bytes": 500 * 6, "x": 500}
    assert 'x_total{zone="z499"} 499.0' in text and 'x_size_bytes_bucket{le="+Inf",zone="z499"} 1.0' in text


def test_replies_that_no_plugin_wrote_have_no_plugin_in_the_metrics(serve: Serve) -> None:
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "hosts /nowhere {\n 10.0.0.1 a.org\n }"))
    assert code(server.ask("b.org.")) == "SERVFAIL" and data(server.ask("a.org.")) == ["10.0.0.1"]
    text = http_get(port, "/metrics")[1]
    label = f'server="dns://127.0.0.1:{server.port}",view="",zone="."'
    assert f'coredns_dns_responses_total{{plugin="",rcode="SERVFAIL",{label}}} 1.0' in text
    assert f'coredns_dns_responses_total{{plugin="errors",rcode="NOERROR",{label}}} 1.0' in text
    port = free_port()
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", f"forward . 127.0.0.1:{free_port()}"))
    assert code(server.ask("b.org.", use_edns=0)) == "SERVFAIL"
    assert 'coredns_dns_responses_total{plugin="",rcode="SERVFAIL"' in http_get(port, "/metrics")[1]


def test_repeated_replies_are_counted_like_others(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "c.yaml"
    path.write_text("kind: Service\nmetadata: {name: web, namespace: n1}\nspec: {clusterIP: 10.0.0.1}\n")
    kubernetes = f"kubernetes cluster.local {{\n manifests {path}\n }}"
    server = serve(block(f"prometheus 127.0.0.1:{port}", "errors", "loadbalance", kubernetes))
    for _ in range(20):
        assert data(server.ask("web.n1.svc.cluster.local.")) == ["10.0.0.1"]
    _, text = http_get(port, "/metrics")
    label = f'server="dns://127.0.0.1:{server.port}",type="A",view="",zone="."'
    assert f'coredns_dns_requests_total{{family="1",proto="udp",{label}}} 20.0' in text
    count = re.search(rf'duration_seconds_count{{server="dns://127.0.0.1:{server.port}",view="",zone="."}} (\S+)', text)
    assert count is not None and float(count[1]) == 20


def test_types_and_zones_that_clients_choose_do_not_grow_the_counters(serve: Serve) -> None:
    port = free_port()
    text = f"a.org:{{port}} b.org:{{port}} {{\n bind 127.0.0.1\n prometheus 127.0.0.1:{port}\n errors\n whoami\n}}\n"
    server = serve(text)
    for i in range(300):
        assert code(server.ask(f"x{i}.{'ab'[i % 2]}.org.", 1000 + i)) == "EMPTY"
    prometheus = next(p for p in server.server.instance.plugins if p.name == "prometheus")  # type: ignore[union-attr]
    assert len(prometheus.rows) == 2  # type: ignore[attr-defined]
    _, exposed = http_get(port, "/metrics")
    for zone in ("a.org.", "b.org."):
        label = f'server="dns://127.0.0.1:{server.port}",type="other",view="",zone="{zone}"'
        assert f'coredns_dns_requests_total{{family="1",proto="udp",{label}}} 150.0' in exposed
