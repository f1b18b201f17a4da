"""multisocket - serves by several processes, so that more than one processor answers queries.

One kdns process keeps one processor busy. With `multisocket`, N processes (workers) listen on the same ports
(SO_REUSEPORT), and the kernel spreads clients over them by their address and port. Together they look like one server.

## Syntax

    multisocket [N]

* N is the number of workers, 1 to 1024. Default: the number of processors that kdns may use, by its affinity and its
  cgroup's quota, rounded up. With 1 there is a single process, as without `multisocket`.

It counts for the whole server, not for a server block; if several blocks have it, the largest N counts. A reload may
change N, but a single process goes on alone until it is restarted.

## What is shared

* Another process watches over the workers. It watches the Kubernetes API once and sends what it learns to all
  workers; it serves `/metrics`, `/health`, `/ready` and the status page for all of them; and it reads the Corefile.
  It answers no queries.
* A new Corefile is loaded by all workers, and then served by all of them. If one of them cannot load it, all go on
  with the old one.
* Metrics are summed over the workers. Of some gauges the largest value is shown, because a sum says nothing: what is
  the same in each worker (`kdns_kubernetes_objects`, `coredns_plugin_enabled`, versions) and the longest time of
  something.
* `/ready` is 200 once all workers are ready. `/health` is 503 while a worker hangs, and says which.
* A worker that dies is replaced, at once the first time, and after a growing pause (0.25s to 30s) while it dies again
  within 10s. One that says nothing for 10s is killed and replaced. The others answer meanwhile. The queries that wait
  in a dead worker's own sockets are lost.
* SIGTERM ends all of them as it ends a single process, with `health`'s `lameduck`.

What each worker has for itself: its cache, its connections to upstreams, its health checks of them, and what `limits`
counts. A client's queries from several ports may meet several workers. Zones of `file`, `auto`, `hosts` and
`secondary`, and `manifests` of `kubernetes`, are read by each worker. Log lines of a worker begin with `worker N:`,
except those of the plugin `log`; in JSON they have a field `worker`.

## Examples

~~~ corefile
.:1053 {
    multisocket 2
    whoami
}
~~~

As many workers as there are processors:

~~~ corefile
.:1053 {
    multisocket
    cache
    forward . 192.0.2.1
}
~~~

## Metrics

* `kdns_workers{}` - workers that serve.
* `kdns_worker_restarts_total{reason}` - workers that ended and were replaced: `signal`, `exit` or `hung`.
* `kdns_worker_catch_ups_total{}` - times a worker was so far behind the API that all was sent to it anew.
"""

import math
import os
from collections.abc import Sequence
from typing import ClassVar, Final

from kdns.corefile import Directive, ServerBlock
from kdns.plugin import Plugin, readers

MOST: Final = 1024  # CoreDNS's
_CGROUP: Final = "/sys/fs/cgroup"
_OWN: Final = "/proc/self/cgroup"


class Multisocket(Plugin):
    """Says how many processes are to serve; its config is that number."""

    name: ClassVar[str] = "multisocket"

    @classmethod
    def parse(cls, directives: Sequence[Directive], block: ServerBlock) -> Sequence[int]:
        directive = readers.once(directives)
        readers.arguments(directive, 0, 1)
        readers.no_block(directive)
        if not directive.args:
            return [processors()]
        word = directive.args[0]
        try:
            count = int(word.text)
        except ValueError:
            raise readers.fail(word, f'invalid num sockets: "{word.text}" is not a number') from None
        if count < 1:
            raise readers.fail(word, f"num sockets can not be zero or negative: {count}")
        if count > MOST:
            raise readers.fail(word, f"num sockets exceeds maximum ({MOST}): {count}")
        return [count]

    @property
    def processes(self) -> int:
        """How many processes are to serve (kdns.plugin.providers.Processes)."""
        count: int = self.config
        return count


def processors(root: str = _CGROUP, own: str = _OWN) -> int:
    """How many processors this process may use: its affinity, and the quotas of its cgroup and those above it."""
    count = len(os.sched_getaffinity(0))
    quota = min(_quotas(root, own), default=math.inf)
    return max(min(count, math.ceil(quota) if quota < count else count, MOST), 1)


def _quotas(root: str, own: str) -> list[float]:
    """Processors that each cgroup on the way up allows (cpu.max of version 2, cpu.cfs_quota_us of version 1)."""
    found = []
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        folders = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(folders), -1, -1):
            inside = "/".join(folders[:depth])
            if not controllers:
                quota, _, period = _read(os.path.join(root, inside, "cpu.max")).strip().partition(" ")
            elif "cpu" in controllers.split(","):
                quota = _read(os.path.join(root, "cpu", inside, "cpu.cfs_quota_us")).strip()
                period = _read(os.path.join(root, "cpu", inside, "cpu.cfs_period_us")).strip()
            else:
                continue
            if quota.isdigit() and period.isdigit() and int(period) and int(quota):
                found.append(int(quota) / int(period))
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
