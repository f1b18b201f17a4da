"""Which build of kdns runs."""

from kdns.dns import wire


def build() -> str:
    """`compiled` where the hot modules are extension modules (mypyc), `interpreted` where they run as Python."""
    return "interpreted" if str(wire.__file__).endswith((".py", ".pyc")) else "compiled"
