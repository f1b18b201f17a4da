"""A zone of RECORDS records, read at the start and again, beside CoreDNS, Knot and NSD: seconds, memory, stalls.

    python -m benchmarks.bigzone      prints a table; part of `make bench`

The server is on core 0, and so is the child that reads the zone for it. A thousand questions a second are asked while
it is read again: the worst reply time says how long clients waited, also for the child.
"""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import zones
from benchmarks.files import STILL, wait, watch

RECORDS: Final = int(os.environ.get("BENCH_RECORDS", "1000000"))


def records(serial: int, more: str = "") -> str:
    """A zone's file: an address of each family for each name."""
    lines = "".join(
        f"h{i} A 10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}\n\tAAAA fd00::{i >> 16:x}:{i & 65535:x}\n"
        for i in range(RECORDS // 2)
    )
    return f"$TTL 300\n@ SOA ns h {serial} 3600 60 60 60\n@ NS ns\nns A 192.0.2.1\nstill A 192.0.2.1\n{more}{lines}"


def table(folder: Path) -> list[str]:
    """What loading takes, one server after the other."""
    out = [
        "| server | records | loaded | MiB | MiB after | again after | p50 | p99.9 | worst | lost |",
        "|---" * 10 + "|",
    ]
    print("\n".join(out), flush=True)
    path = folder / "db.large"
    for make in zones.makers(folder, {"org": path}, " {\n reload 1s\n }"):
        path.write_text(records(1))
        began = time.monotonic()
        server = make()
        try:
            wait(server.port, STILL)
            loaded = time.monotonic() - began
            time.sleep(3)
            before = sum(server.proportional())
            path.with_suffix(".new").write_text(records(2, "new A 192.0.2.2\n"))
            path.with_suffix(".new").rename(path)
            if server.name in ("knot", "nsd"):
                server.process.send_signal(signal.SIGHUP)  # they look at no file by themselves
            found = watch(server.port)
            time.sleep(1)
            after = sum(server.proportional())
            out.append(
                f"| {server.name} | {RECORDS:,} | {loaded:.1f} s | {before:.0f} | {after:.0f} | {found.after:.1f} s "
                f"| {found.p50:.2f} ms | {found.p999:.2f} ms | {found.worst:.1f} ms | {found.lost} |"
            )
            print(out[-1], flush=True)
        finally:
            server.stop()
    return out


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        table(Path(name))


if __name__ == "__main__":
    main()
