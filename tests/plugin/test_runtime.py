"""Resources that plugins share: one of a key, however many ask for it at once."""

import asyncio

import pytest

from kdns.plugin.runtime import Runtime


class Slow:
    """A resource that takes its time to start, or cannot."""

    def __init__(self, gate: asyncio.Event, error: Exception | None = None) -> None:
        self.gate = gate
        self.error = error
        self.stopped = 0

    async def start(self) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        self.stopped += 1


def test_two_who_asked_for_a_resource_while_it_started_got_one_each_and_one_of_them_was_never_stopped() -> None:
    async def run() -> None:
        runtime, gate, made = Runtime(), asyncio.Event(), list[Slow]()

        def make() -> Slow:
            made.append(Slow(gate))
            return made[-1]

        asking = [asyncio.create_task(runtime.acquire("zone", make)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        assert len({id(each) for each in await asyncio.gather(*asking)}) == len(made) == 1
        for left in (2, 1, 0):
            await runtime.release("zone")
            assert made[0].stopped == (not left)
        await runtime.release("zone")  # of what nobody has
        assert made[0].stopped == 1
        assert await runtime.acquire("zone", make) is made[1]

    asyncio.run(run())


def test_who_waits_for_a_resource_that_cannot_start_or_is_given_up_makes_another() -> None:
    async def run() -> None:
        runtime, gate = Runtime(), asyncio.Event()
        broken, never, good = Slow(gate, OSError("no")), Slow(asyncio.Event()), Slow(gate)
        order = iter((broken, never, good))
        asking = [asyncio.create_task(runtime.acquire("zone", lambda: next(order))) for _ in range(4)]
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(OSError, match="no"):
            await asking[0]
        await asyncio.sleep(0)
        asking[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[1]
        assert await asking[2] is good
        assert await asking[3] is good
        await runtime.release("zone")
        await runtime.release("zone")
        assert good.stopped == 1

    asyncio.run(run())


@pytest.mark.parametrize("waits", [True, False])
def test_a_resource_was_started_beside_the_one_of_its_key_that_still_ended(waits: bool) -> None:
    """`waits`: the first that comes meanwhile stays; else it is given up, and another comes."""

    class Ending(Slow):
        async def stop(self) -> None:
            await gate.wait()
            await super().stop()

    started, gate = asyncio.Event(), asyncio.Event()
    started.set()

    async def run() -> None:
        runtime, one, two = Runtime(), Ending(started), Slow(started)
        await runtime.acquire("zone", lambda: one)
        ending = asyncio.create_task(runtime.release("zone"))
        await asyncio.sleep(0)
        asking = asyncio.create_task(runtime.acquire("zone", lambda: two))
        await asyncio.sleep(0)
        assert not asking.done()
        if not waits:
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            asking = asyncio.create_task(runtime.acquire("zone", lambda: two))
            await asyncio.sleep(0)
            assert not asking.done()
        gate.set()
        await ending
        assert await asking is two and one.stopped == 1 and not two.stopped
        await runtime.release("zone")
        assert two.stopped == 1 and not runtime._held

    asyncio.run(run())
