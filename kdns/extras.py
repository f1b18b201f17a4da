"""Packages that one feature alone needs, and that are not installed unless asked for: the extras of the package."""

import importlib.util


def lacking_quic(what: str) -> str:
    """Why `what`, something over QUIC, cannot be had, and what to do; empty where it can."""
    if importlib.util.find_spec("aioquic") is not None:
        return ""
    return f"{what} needs the package aioquic, which is not installed: pip install 'kdns[quic]'"
