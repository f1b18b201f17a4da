"""What the tools read: a Corefile by path, from standard input, or inside a ConfigMap's YAML."""

import os
import sys

import yaml

from kdns.cli.serve import read_file
from kdns.corefile import Corefile, CorefileError, source
from kdns.server import build


def raw_text(path: str, *, exactly: bool = False) -> str:
    """A file's text as it stands; `-` and `stdin` are standard input. `exactly`: octets that are no UTF-8 are an error."""
    if path in ("-", "stdin"):
        return source.text_of(sys.stdin.buffer, "stdin", exactly=exactly)
    return read_file(path, exactly=exactly)


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
    """A parsed Corefile, a ConfigMap's where the file is one. Raises CorefileError or OSError."""
    text = raw_text(path)
    return build.read(from_config_map(text) or text, shown(path), default_port=port, environ=os.environ)


def shown(path: str) -> str:
    """How a path stands in errors."""
    return "stdin" if path == "-" else path
