"""What endpoints are called below their Service: host name, Pod name, or their address with dashes."""

import socket

from kdns.kube.objects import Slice


def endpoint_label(part: Slice, i: int, address: bytes, pod_names: bool = False) -> bytes:
    """The name of an endpoint below its Service: hostname, else the Pod's name if asked for, else the dashed address."""
    if part.names is not None and part.names[i]:
        return part.names[i].encode()
    if pod_names and part.pods is not None and part.pods[i]:
        return part.pods[i].lower().encode()
    return dashed(address)


def dashed(address: bytes) -> bytes:
    """`10-1-2-3`, `5678-abcd--1`; a label may not end in a dash, so a 0 goes behind one."""
    if len(address) == 4:
        return b"%d-%d-%d-%d" % tuple(address)
    text = socket.inet_ntop(socket.AF_INET6, address).replace(":", "-").replace(".", "-").encode()
    return text + b"0" if text.endswith(b"-") else text


def undashed(label: bytes) -> bytes | None:
    """The packed address that a dashed label stands for, or None."""
    try:
        if label.count(b"-") == 3 and b"--" not in label:
            return socket.inet_pton(socket.AF_INET, label.replace(b"-", b".").decode("ascii"))
        return socket.inet_pton(socket.AF_INET6, label.replace(b"-", b":").decode("ascii"))
    except (OSError, ValueError):
        return None
