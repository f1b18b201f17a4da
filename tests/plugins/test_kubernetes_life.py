"""kubernetes: what its life has in common with that of others, and what changes while something waits."""

import asyncio
from pathlib import Path

import pytest

from kdns.dns import iana
from kdns.dns.answer import Answer
from kdns.dns.name import from_text
from kdns.kube.manifests import ManifestSource
from kdns.plugin.runtime import Runtime
from kdns.plugins.kubernetes.config import Config
from kdns.plugins.kubernetes.plugin import Kubernetes

ORIGIN = from_text("cluster.local.")


def test_answers_said_that_they_were_stale_for_ever_where_the_api_went_and_came_quickly() -> None:
    async def run() -> None:
        plugin = Kubernetes(Config((ORIGIN,)))
        nodes = [plugin.index.store.add(from_text(f"n{i}.cluster.local.")) for i in range(2000)]
        plugin._freshened()
        await asyncio.sleep(0)
        assert plugin.invalidating is not None and not plugin.invalidating.done()
        nodes[0].put(iana.A, Answer(iana.NOERROR))  # as it was meanwhile
        plugin._freshened()
        await plugin.invalidating
        assert nodes[0].find(iana.A) is None
        await plugin.stop()

    asyncio.run(run())


def test_who_was_given_up_while_it_waited_for_a_cluster_took_it_from_who_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        gate = asyncio.Event()

        async def start(source: ManifestSource) -> None:
            await gate.wait()

        monkeypatch.setattr(ManifestSource, "start", start)
        runtime = Runtime()
        one, two = Kubernetes(Config((ORIGIN,))), Kubernetes(Config((ORIGIN,)))
        one.paths = two.paths = (str(tmp_path),)
        first, second = asyncio.create_task(one.start(runtime)), asyncio.create_task(two.start(runtime))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await two.stop()
        gate.set()
        await first
        assert one.source is not None and list(runtime._held) == [one.key]
        await one.stop()
        assert not runtime._held

    asyncio.run(run())
