"""Read by the interpreter that runs dnsviz: that of Debian 12 (0.9.4) looks for the version of pygraphviz where it was
before 1.7.
"""

import contextlib
import importlib
import types

with contextlib.suppress(ImportError):
    found = importlib.import_module("pygraphviz")
    if not hasattr(found, "release"):
        found.release = types.SimpleNamespace(version=found.__version__)  # type: ignore[attr-defined]
