"""Leaves of the package `kubernetes` what configuration and credentials need: its models are 100 MB that kdns never
loads.

What only the models and what else is left out want goes with them. python docker/slim.py SITE
"""

import shutil
import sys
from pathlib import Path

# Folders and files below SITE that nothing of ours imports.
GONE = (
    "kubernetes/client/models", "kubernetes/client/api", "kubernetes/docs", "kubernetes/dynamic",
    "kubernetes/leaderelection",
    "kubernetes/stream", "kubernetes/test", "kubernetes/e2e_test", "kubernetes/aio", "kubernetes/informer",
    "kubernetes/watch",
    "pydantic", "pydantic_core", "typing_inspection", "annotated_types", "websocket", "aiohttp_retry",
)  # fmt: skip
# What is left of `kubernetes` and `kubernetes.client`: their own __init__ import every model there is.
KEPT = {
    "kubernetes/__init__.py": '__version__ = "slim"\n',
    "kubernetes/client/__init__.py": (
        "from kubernetes.client.configuration import Configuration\n"
        "from kubernetes.client.exceptions import ApiException, OpenApiException\n"
        "from kubernetes.client.api_client import ApiClient\n"
    ),
    # api_client asks it for classes by name when it reads objects, which kdns does itself.
    "kubernetes/client/models/__init__.py": "",
    "kubernetes/utils/__init__.py": "",
}


def main() -> int:
    site = Path(sys.argv[1])
    before = size(site)
    if not (site / "kubernetes").is_dir():
        sys.stderr.write(f"{site}: the package kubernetes is not there\n")
        return 1
    for name in GONE:
        shutil.rmtree(site / name, ignore_errors=True)
    for name, text in KEPT.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    sys.stdout.write(f"{site}: {before / 1e6:.0f} MB -> {size(site) / 1e6:.0f} MB\n")
    return 0


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
