"""The workers of `multisocket`, from the side of the process that watches over them: asked, fed and replaced.

Laws: a worker that ends without having been told to is replaced, at once the first time, after a pause that doubles
while it does not live STEADY seconds; one that says nothing for HANG seconds is killed, and replaced. The others answer
meanwhile. Nobody who asks waits for a worker that hangs longer than ASK seconds.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, final

from kdns import faults, log
from kdns.kube.relay import Follower, Relay
from kdns.metrics import Counter, Gauge
from kdns.net.pipe import Pipe
from kdns.server.forks import ForkServer

ASK: Final = 1.0  # seconds in which a worker says how it is; a kubelet waits one second for a probe
METRICS: Final = 3.0  # seconds for its metrics, of which there may be many; Prometheus waits ten
# Seconds in which a worker builds and loads a configuration, at most: zone files and name servers may be slow.
SLOW: Final = 120.0
PING: Final = 1.0  # seconds between two looks at each worker
HANG: Final = 10.0  # seconds of silence after which a worker is killed: far more than any turn of a loop takes
STEADY: Final = 10.0  # seconds a worker lives before the next death is a first one again
# Seconds in which SIGTERM comes here too, where it was sent to all processes: a worker may have ended before that.
TOGETHER: Final = 0.5
PAUSE: Final = (0.25, 30.0)  # seconds before a worker is replaced that died again at once: the first and the longest

SERVING: Final = Gauge("kdns_workers", "Workers (`multisocket`) that serve.")
RESTARTS: Final = Counter(
    "kdns_worker_restarts_total", "Workers that ended and were replaced, by how they ended.", ("reason",)
)
ANEW: Final = Counter(
    "kdns_worker_catch_ups_total", "Times a worker was so far behind that the whole state was sent to it anew."
)

_log = log.Logger()


class WorkerFailed(OSError):
    """A worker did not start; the text says why."""


@final
class Hand:
    """One worker: its process, what was asked of it, and what it follows."""

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self.pipe: Pipe | None = None
        self.began = self.heard = time.monotonic()
        self.serving = False
        self.started = False  # whoever starts it has seen it serve
        self.ending = False  # it was told to end
        self.hung = False
        self.asked: dict[int, asyncio.Future[Any]] = {}
        self.parts: dict[int, list[Any]] = {}
        self.pumps: dict[str, asyncio.Task[None]] = {}
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._next = 0

    async def ask(self, what: str, *arguments: Any, limit: float | None = ASK) -> Any:
        """What it says; None where it does not within `limit` seconds, or has ended."""
        if self.pipe is None:
            return None
        self._next += 1
        number = self._next
        said = self.asked[number] = asyncio.get_running_loop().create_future()
        self.parts[number] = []
        self.pipe.send("ask", number, what, *arguments)
        try:
            async with asyncio.timeout(limit):
                value = await said
            return self.parts[number] if what == "metrics" and value == "" else value
        except TimeoutError:
            return None
        finally:
            self.asked.pop(number, None)
            self.parts.pop(number, None)

    def answered(self, number: int, value: Any) -> None:
        """It said something."""
        said = self.asked.get(number)
        if said is not None and not said.done():
            said.set_result(value)

    def gone(self) -> None:
        """Its end of the pipe is closed."""
        self.pipe = None
        self.serving = False
        for said in list(self.asked.values()):
            if not said.done():
                said.set_result(None)
        for pump in self.pumps.values():
            pump.cancel()
        self.pumps.clear()


@final
class Workers:
    """All of them, by number from 1 on. `stop` is called with an exit code where a plugin in a worker asks for the end;
    `replace` with the number of a worker that is to be replaced.
    """

    def __init__(self, forks: ForkServer) -> None:
        self.forks = forks
        self.hands: dict[int, Hand] = {}
        self.known: set[int] = set()  # numbers of those that have served
        self.relays: dict[str, Relay] = {}
        self.early: dict[int, int] = {}  # ended before we knew of them: process id -> status
        self.deaths: dict[int, int] = {}  # one after the other, by number
        self.stop: Callable[[int], None] = lambda code: None
        self.replace: Callable[[int, float], None] = lambda number, pause: None
        self.lost: Callable[[], None] = lambda: None
        self.watch: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to look after them."""
        self.forks.ended = self._ended
        self.forks.gone = lambda: self.lost()
        self.forks.listen()
        self.watch = asyncio.create_task(faults.supervise("the watch over the workers", self._watch), name="workers")

    async def spawn(self, number: int, corefile: bytes) -> None:
        """Starts a worker with this configuration. Raises WorkerFailed with what went wrong."""
        pid, sock = await self.forks.fork(number)
        hand = Hand(number, pid)
        self.hands[number] = hand
        hand.pipe = await Pipe.open(sock, lambda message: self._heard(hand, message), hand.gone)
        status = self.early.pop(pid, None)
        if status is not None:
            self._ended(pid, status)
        problem = await hand.ask("start", corefile, limit=SLOW)
        if problem != "" or hand.pipe is None:  # it may have ended as soon as it had started
            hand.ending = True
            if hand.pipe is not None:
                hand.pipe.abort()
            self._kill(hand)
            raise WorkerFailed(problem or f"worker {number} ended, or said nothing for {SLOW:g} s, while it started")
        hand.started = hand.serving = True
        self.known.add(number)
        SERVING.slot()[0] = len(self.living())

    def living(self) -> list[Hand]:
        """The workers that serve."""
        return [hand for hand in self.hands.values() if hand.serving]

    async def ask_each(self, what: str, *arguments: Any, limit: float | None = ASK) -> dict[int, Any]:
        """What each of the workers says that serve; one that ends meanwhile is not among them."""
        hands = self.living()
        said = await asyncio.gather(*(hand.ask(what, *arguments, limit=limit) for hand in hands))
        return {
            hand.number: value for hand, value in zip(hands, said, strict=True) if value is not None or hand.serving
        }

    async def ask(self, what: str, *arguments: Any) -> dict[int, Any]:
        """What each worker says; None where it does not in time, or has not served yet."""
        said = await self.ask_each(what, *arguments, limit=METRICS if what == "metrics" else ASK)
        return {number: said.get(number) for number in sorted(self.hands) if number in said or number not in self.known}

    async def hung(self) -> list[int]:
        """The numbers of the workers that serve, and do not answer."""
        return [number for number, said in (await self.ask_each("ping")).items() if said is None]

    def pids(self) -> dict[int, int]:
        """The process ids of the workers that run, by number."""
        return {hand.number: hand.pid for hand in self.hands.values() if not hand.ended.done()}

    async def end(self, hands: list[Hand], drain: float) -> None:
        """Lets workers answer what is in flight, and ends them; those that do not end are killed."""
        for hand in hands:
            hand.ending = True
        await asyncio.gather(*(hand.ask("end", drain, limit=drain + ASK) for hand in hands))
        waiting = [hand.ended for hand in hands]
        if waiting:
            await asyncio.wait(waiting, timeout=ASK)
        for hand in hands:
            if not hand.ended.done():
                self._kill(hand)
                await asyncio.wait([hand.ended], timeout=ASK)
            hand.gone()
            if self.hands.get(hand.number) is hand:
                del self.hands[hand.number]
                self.known.discard(hand.number)
        SERVING.slot()[0] = len(self.living())

    def kill(self, number: int) -> None:
        """Ends a worker at once; another takes its place."""
        hand = self.hands.get(number)
        if hand is not None:
            self._kill(hand)

    def close(self) -> None:
        """Looks after nobody any more; all have ended."""
        if self.watch is not None:
            self.watch.cancel()
        self.forks.gone = lambda: None
        self.forks.close()

    # Relays.

    def publish(self, name: str, relay: Relay) -> None:
        """Sends a relay to all workers that follow this name."""
        self.relays[name] = relay

    def withdraw(self, name: str) -> None:
        """Ends that."""
        self.relays.pop(name, None)
        for hand in self.hands.values():
            pump = hand.pumps.pop(name, None)
            if pump is not None:
                pump.cancel()

    def _follow(self, hand: Hand, name: str) -> None:
        relay = self.relays.get(name)
        if relay is None:
            _log.error(f"worker {hand.number} asks for a state of the cluster that is not watched; report this")
            return
        self._unfollow(hand, name)
        hand.pumps[name] = asyncio.create_task(
            faults.supervise("the relay to a worker", lambda: self._pump(hand, name, relay)), name="relay"
        )

    def _unfollow(self, hand: Hand, name: str) -> None:
        pump = hand.pumps.pop(name, None)
        if pump is not None:
            pump.cancel()

    async def _pump(self, hand: Hand, name: str, relay: Relay) -> None:
        follower = Follower(relay)
        sweeps = follower.sweeps
        try:
            while True:
                await follower.wake.wait()
                while (frame := follower.next()) is not None and hand.pipe is not None:
                    hand.pipe.send("frame", name, *frame)
                    await hand.pipe.room()
                    await asyncio.sleep(0)
                ANEW.slot()[0] += follower.sweeps - sweeps
                sweeps = follower.sweeps
        finally:
            follower.close()

    # What is heard.

    def _heard(self, hand: Hand, message: list[Any]) -> None:
        hand.heard = time.monotonic()
        what = message[0]
        if what == "said":
            hand.answered(message[1], message[2])
        elif what == "part":
            parts = hand.parts.get(message[1])
            if parts is not None:
                parts.append(message[2])
        elif what == "follow":
            self._follow(hand, message[1])
        elif what == "unfollow":
            self._unfollow(hand, message[1])
        elif what == "tell":
            for other in self.living():
                if other is not hand and other.pipe is not None:
                    other.pipe.send("told", message[1], message[2])
        elif what == "stop":
            self.stop(message[1])

    def _ended(self, pid: int, status: int) -> None:
        hand = next((each for each in self.hands.values() if each.pid == pid), None)
        if hand is None:
            self.early[pid] = status
            return
        hand.gone()
        if not hand.ended.done():
            hand.ended.set_result(status)
        SERVING.slot()[0] = len(self.living())
        if hand.ending or not hand.started:
            return  # of one that has not started `spawn` hears
        if status:
            self._died(hand, status)
        else:
            asyncio.get_running_loop().call_later(TOGETHER, self._died, hand, status)

    def _died(self, hand: Hand, status: int) -> None:
        """One that nobody has told to end has ended: another takes its place."""
        if hand.ending:
            return
        number, pid = hand.number, hand.pid
        deaths = self.deaths.get(number, 0)
        if time.monotonic() - hand.began >= STEADY:
            deaths = 0
        self.deaths[number] = deaths + 1
        pause = min(PAUSE[0] * 2.0 ** (deaths - 1), PAUSE[1]) if deaths else 0.0
        reason, text = _how(status, hand.hung)
        RESTARTS.slot(reason)[0] += 1
        when = f"in {pause:g} s" if pause else "now"
        _log.error(f"worker {number} (process {pid}) {text}: another takes its place {when}; the others go on")
        self.replace(number, pause)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PING)
            for hand in self.living():
                if time.monotonic() - hand.heard > HANG:
                    hand.hung = True
                    _log.error(f"worker {hand.number} (process {hand.pid}) has said nothing for {HANG:g} s")
                    self._kill(hand)
            await self.ask_each("ping")

    def _kill(self, hand: Hand) -> None:
        if not hand.ended.done():
            try:
                os.kill(hand.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


def _how(status: int, hung: bool) -> tuple[str, str]:
    """How a process has ended: a word for a metric, and words for a person."""
    if hung:
        return "hung", "was killed because it hung"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return "signal", f"was killed by {name}"
    return "exit", f"has ended with code {os.waitstatus_to_exitcode(status)}"
