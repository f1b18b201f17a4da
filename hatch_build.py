"""The build hook: refuses a checkout whose link kdns/plugins is a plain file, and puts Corefile.example beside the sample."""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before each build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        link = os.path.join(self.root, "kdns", "plugins")
        if not os.path.isdir(link):
            raise RuntimeError(
                "kdns/plugins is not a link to ../plugins: this checkout was made without symbolic links "
                "(git config core.symlinks true, then check out again)"
            )
        if self.target_name == "wheel" and version != "editable":
            build_data["force_include"][os.path.join(self.root, "Corefile.example")] = "kdns/cli/sample/Corefile.example"
