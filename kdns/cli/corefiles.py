"""What the tools read: a Corefile by path, from standard input, or inside a ConfigMap's YAML."""

import os
import sys

import yaml

from kdns.cli.serve import read_file
from kdns.corefile import Corefile, CorefileError
from kdns.server import build

MAX_TEXT = 16 << 20  # characters; a ConfigMap holds 1 MiB at most


def text_of(path: str) -> str:
    """The text of a Corefile; `-` and `stdin` are standard input. Raises CorefileError or OSError."""
    if path in ("-", "stdin"):
        text = sys.stdin.buffer.read(MAX_TEXT).decode("utf-8", errors="replace")
    else:
        text = read_file(path)
    return from_config_map(text) or text


def from_config_map(text: str) -> str:
    """The Corefile in a ConfigMap's YAML (`kubectl get cm coredns -o yaml`); empty where the text is none."""
    if "ConfigMap" not in text or "Corefile" not in text:
        return ""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    if not isinstance(found, dict) or found.get("kind") != "ConfigMap":
        return ""
    data = found.get("data")
    corefile = data.get("Corefile") if isinstance(data, dict) else None
    if not isinstance(corefile, str):
        raise CorefileError(None, "the ConfigMap has no key Corefile under data")
    return corefile


def read(path: str, port: int) -> Corefile:
    """A parsed Corefile. Raises CorefileError or OSError."""
    return build.read(text_of(path), shown(path), default_port=port, environ=os.environ)


def shown(path: str) -> str:
    """How a path stands in errors."""
    return "stdin" if path == "-" else path
