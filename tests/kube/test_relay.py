"""The state of a cluster on its way to other processes: order, catching up, and what waits for a slow one."""

import asyncio

import pytest

from kdns.kube import relay as module
from kdns.kube.cluster import Cluster
from kdns.kube.objects import CLUSTER, NAMESPACE, SERVICE, SLICE, Namespace, Port, Service, Slice, Slices
from kdns.kube.relay import Follower, Relay, RelayedSource

PORTS = (Port("http", "tcp", 80),)


class Way:
    """A feed in one process."""

    def __init__(self, relay: Relay) -> None:
        self.follower = Follower(relay)

    def follow(self, name: str, receive: object) -> None:
        """Nothing is sent by itself."""

    def unfollow(self, name: str) -> None:
        """Nothing is kept."""


def put(relay: Relay | Cluster, name: str, address: bytes) -> None:
    relay.apply(SERVICE, f"n1/{name}", Service("n1", name, CLUSTER, (address,), PORTS))
    part = Slice(name, b"\x0a\x00\x00" + address[-1:], 4, None, None, PORTS)
    relay.apply(SLICE, f"n1/{name}-1", Slices("n1", f"{name}-1", name, (part,)))


def drain(way: Way, source: RelayedSource, frames: int = 1 << 30) -> int:
    """Hands over what there is; says how many frames it took."""

    async def over() -> int:
        count = 0
        while count < frames and (frame := way.follower.next()) is not None:
            await source.receive(*frame)
            count += 1
        return count

    return asyncio.run(over())


def same(relay: Relay, cluster: Cluster) -> bool:
    return all(dict(relay.objects(kind)) == dict(cluster.objects(kind)) for kind in module.KINDS)


def begin(relay: Relay) -> tuple[Way, RelayedSource]:
    way = Way(relay)
    return way, RelayedSource("a", way, Cluster())


def test_a_follower_that_begins_late_has_all_and_then_each_change() -> None:
    relay = Relay()
    relay.apply(NAMESPACE, "/n1", Namespace("n1"))
    for i in range(120):
        put(relay, f"s{i}", bytes((10, 96, 0, i)))
    way, source = begin(relay)
    drain(way, source)
    assert same(relay, source.cluster) and not source.listed()
    relay.set_synced()
    drain(way, source)
    assert source.listed()
    put(relay, "s3", b"\x0a\x60\x01\x03")
    relay.apply(SERVICE, "n1/s4", None)
    relay.set_stale(True)
    drain(way, source)
    assert same(relay, source.cluster) and source.cluster.stale
    assert not relay.apply(SERVICE, "n1/s4", None)
    assert drain(way, source) == 0


def test_changes_while_the_whole_state_is_sent_are_not_lost() -> None:
    relay = Relay()
    for i in range(200):
        put(relay, f"s{i}", bytes((10, 96, 0, i)))
    way, source = begin(relay)
    drain(way, source, 3)
    for i in range(0, 200, 2):
        relay.apply(SERVICE, f"n1/s{i}", None)
        put(relay, f"s{i + 1}", bytes((10, 97, 0, i)))
        put(relay, f"new{i}", bytes((10, 98, 0, i)))
    drain(way, source)
    assert same(relay, source.cluster)


def test_many_changes_of_one_object_wait_as_one() -> None:
    relay = Relay()
    way, source = begin(relay)
    drain(way, source)
    for i in range(1000):
        put(relay, "busy", bytes((10, 96, i >> 8, i & 255)))
    assert len(way.follower.pending) == 2
    drain(way, source)
    assert same(relay, source.cluster)


def test_one_that_is_far_behind_gets_the_whole_state_and_forgets_what_has_gone() -> None:
    before, module.LIMIT = module.LIMIT, 100  # type: ignore[misc]
    try:
        relay = Relay()
        for i in range(200):
            put(relay, f"s{i}", bytes((10, 96, 0, i)))
        relay.set_synced()
        way, source = begin(relay)
        drain(way, source)
        assert way.follower.sweeps == 1
        for i in range(150):
            relay.apply(SERVICE, f"n1/s{i}", None)
            relay.apply(SLICE, f"n1/s{i}-1", None)
            put(relay, f"other{i}", bytes((10, 99, 0, i)))
            assert len(way.follower.pending) <= 101
        assert way.follower.sweeps > 1
        # A name that was there all the time never went away meanwhile.
        gone: list[str] = []

        class Watch:
            def entry_changed(self, entry: object, addresses: list[bytes]) -> None:
                if "n1/s170" not in source.cluster.entries:
                    gone.append("s170")

            def namespace_changed(self, name: str) -> None: ...

            def pods_changed(self) -> None: ...

            def freshness_changed(self) -> None: ...

        source.cluster.watchers.append(Watch())
        drain(way, source)
        assert same(relay, source.cluster) and not gone
    finally:
        module.LIMIT = before  # type: ignore[misc]


def test_a_start_that_was_given_up_left_frames_coming_for_ever() -> None:
    class Feed:
        names: list[str] = []

        def follow(self, name: str, receive: object) -> None:
            self.names.append(name)

        def unfollow(self, name: str) -> None:
            self.names.remove(name)

    async def run() -> None:
        source = RelayedSource("a", Feed(), Cluster())
        starting = asyncio.create_task(source.start())
        await asyncio.sleep(0)
        assert Feed.names == ["a"]
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not Feed.names

    asyncio.run(run())
