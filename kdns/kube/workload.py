"""The workload that a Pod is of: its name without what its controller appended.

A guess by the form of names, because Pods are watched without their owners, and an owner of each would cost memory
for a cluster's every Pod. A ReplicaSet, DaemonSet or Job appends five characters, a Deployment before that the hash of
its template, a CronJob the minute; a StatefulSet appends a number.
"""

import functools
import re
from typing import Final

# What generated parts are made of: no vowels, so that no words appear (k8s.io/apimachinery, util/rand).
_GENERATED: Final = "[bcdfghjklmnpqrstvwxz2456789]"
_APPENDED: Final = re.compile(rf"(?:-(?:{_GENERATED}{{6,10}}|\d{{8,10}}))?-{_GENERATED}{{5}}$|-\d{{1,5}}$")


@functools.lru_cache(4096)  # it is asked for each query of a name that does not exist
def workload(pod: str) -> str:
    """The name of a Pod's workload; its own where it has the form of none."""
    found = _APPENDED.search(pod, 1)
    return pod[: found.start()] if found is not None else pod
