"""Corefiles and files of manifests for the tests of the plugin kubernetes."""

from pathlib import Path
from typing import Any

import yaml


def kubernetes(options: str, zones: str = "cluster.local") -> str:
    """A server block with the plugin and these options."""
    return f".:{{port}} {{\n bind 127.0.0.1\n kubernetes {zones} {{\n {options}\n ttl 30\n }}\n}}"


def manifests(tmp_path: Path, *objects: dict[str, Any]) -> str:
    """Writes objects to a file; the option that reads it."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    return f"manifests {path}"
