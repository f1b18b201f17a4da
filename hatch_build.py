"""The build hook: checks the checkout, puts Corefile.example beside the sample, keeps the link of plugins in an sdist,
and compiles the hot modules if asked to.

With KDNS_COMPILE=1 a wheel holds the modules of COMPILED also as extension modules made by mypyc; Python prefers those.
The typed source is the same, and everything runs without them. Nothing is built in the checkout: sources are copied.

    python hatch_build.py FOLDER      copies the checkout and puts the extension modules in: what `make compiled` runs
"""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The modules on the way of a query. Not among them: kdns.plugin.base, which other people's plugins extend (an
# interpreted class cannot extend a compiled one), and what waits for the network more than it works.
COMPILED = (
    "kdns/address.py",
    "kdns/deadlines.py",
    "kdns/dns/answer.py",
    "kdns/dns/edns.py",
    "kdns/dns/grpc.py",
    "kdns/dns/message.py",
    "kdns/dns/name.py",
    "kdns/dns/query.py",
    "kdns/dns/rdata.py",
    "kdns/dns/render.py",
    "kdns/dns/reply.py",
    "kdns/dns/reverse.py",
    "kdns/dns/rrset.py",
    "kdns/dns/wire.py",
    "kdns/net/connection.py",
    "kdns/net/doh.py",
    "kdns/net/grpc.py",
    "kdns/net/http2.py",
    "kdns/net/http2_frames.py",
    "kdns/net/http_date.py",
    "kdns/net/huffman.py",
    "kdns/net/tcp_connection.py",
    "kdns/net/tls.py",
    "kdns/net/turns.py",
    "kdns/net/udp.py",
    "kdns/net/web_connection.py",
    "kdns/plugin/outcome.py",
    "kdns/plugin/request.py",
    "kdns/plugins/cache/classify.py",
    "kdns/plugins/cache/handler.py",
    "kdns/plugins/cache/table.py",
    "kdns/plugins/forward/attempt.py",
    "kdns/plugins/forward/grpc.py",
    "kdns/plugins/forward/handler.py",
    "kdns/plugins/kubernetes/endpoints.py",
    "kdns/plugins/kubernetes/index.py",
    "kdns/plugins/kubernetes/names.py",
    "kdns/plugins/kubernetes/plugin.py",
    "kdns/plugins/kubernetes/records.py",
    "kdns/plugins/loadbalance.py",
    "kdns/plugins/prometheus/__init__.py",
    "kdns/plugins/prometheus/rows.py",
    "kdns/plugins/searchpath.py",
    "kdns/server/accept.py",
    "kdns/server/audiences.py",
    "kdns/server/block.py",
    "kdns/server/chain.py",
    "kdns/server/dispatch.py",
    "kdns/server/packing.py",
    "kdns/server/pending.py",
    "kdns/server/replycache.py",
    "kdns/store/node_table.py",
    "kdns/store/trie.py",
    "kdns/store/zone.py",
    "kdns/store/zone_builder.py",
    "kdns/store/zone_node.py",
    "kdns/store/zone_proofs.py",
    "kdns/upstream/exchange.py",
    "kdns/upstream/udp.py",
    "kdns/upstream/upstream.py",
)
MYPY = "mypy[mypyc]>=2.4"
NEEDS = (MYPY, "setuptools>=75", "types-PyYAML>=6.0.12")  # what a compilation needs beside hatchling


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before each build."""

    def dependencies(self) -> list[str]:
        """What a build needs beside hatchling."""
        return list(NEEDS) if self._compiles() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds to what is built. Raises RuntimeError for a checkout that cannot be built."""
        root = Path(self.root)
        if not (root / "kdns" / "plugins").is_dir():
            raise RuntimeError(
                "kdns/plugins is not a link to ../plugins: this checkout was made without symbolic links "
                "(git config core.symlinks true, then check out again)"
            )
        if self.target_name != "wheel" or version == "editable":
            return
        build_data["force_include"][str(root / "Corefile.example")] = "kdns/cli/sample/Corefile.example"
        if self._compiles():
            self.folder = tempfile.TemporaryDirectory()
            for path, name in extensions(root, Path(self.folder.name)):
                build_data["force_include"][path] = name
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Adds the link of plugins to an sdist, and removes what was compiled."""
        if self.target_name == "sdist":
            link_plugins(Path(artifact_path))
        folder = getattr(self, "folder", None)
        if folder is not None:
            folder.cleanup()

    def _compiles(self) -> bool:
        return self.target_name == "wheel" and os.environ.get("KDNS_COMPILE", "") not in ("", "0")


def link_plugins(sdist: Path) -> None:
    """Adds the link kdns/plugins to an sdist, as a checkout has it: hatchling follows links and writes none."""
    plain = io.BytesIO(gzip.decompress(sdist.read_bytes()))
    with tarfile.open(fileobj=plain, mode="a", format=tarfile.PAX_FORMAT) as archive:
        link = tarfile.TarInfo(f"{sdist.name.removesuffix('.tar.gz')}/kdns/plugins")
        link.type, link.linkname, link.mode = tarfile.SYMTYPE, "../plugins", 0o777
        # The same sources give the same bytes: hatchling has one time for all members.
        link.mtime = archive.getmembers()[0].mtime
        archive.addfile(link)
    sdist.write_bytes(gzip.compress(plain.getvalue(), mtime=int(link.mtime)))


def extensions(root: Path, folder: Path) -> list[tuple[str, str]]:
    """Compiles a copy of the sources in a folder: the extension modules' paths, and their places in the wheel.

    Raises RuntimeError with the compiler's output.
    """
    shutil.copytree(root / "kdns", folder / "kdns", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", folder)
    (folder / "setup.py").write_text(
        "from mypyc.build import mypycify\nfrom setuptools import setup\n\n"
        f"setup(name='kdns', packages=[], ext_modules=mypycify({list(COMPILED)!r}, opt_level='2', debug_level='0'))\n"
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "out", "--build-temp", "tmp"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the hot modules cannot be compiled:\n{done.stdout}\n{done.stderr}")
    out = folder / "out"
    return [(str(path), str(path.relative_to(out))) for path in sorted(out.rglob("*.so"))]


def tree(root: Path, folder: Path) -> None:
    """Makes a folder that is a copy of the checkout with the compiled modules in it.

    Modules that were compiled from the same sources are taken again (a compilation takes minutes). Raises RuntimeError
    with the compiler's output.
    """
    digest = hashlib.sha256(f"{COMPILED} {sys.version} {MYPY}".encode())
    for path in sorted((root / "kdns").rglob("*.py")) + sorted((root / "plugins").rglob("*.py")):
        digest.update(path.read_bytes())
    modules = folder.parent / f"modules-{digest.hexdigest()[:16]}"
    if not modules.is_dir():
        with tempfile.TemporaryDirectory() as work:
            for path, name in extensions(root, Path(work)):
                target = Path(work) / "done" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            for old in folder.parent.glob("modules-*"):
                shutil.rmtree(old)
            shutil.copytree(Path(work) / "done", modules)
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", ".work"
    )
    shutil.copytree(root, folder, symlinks=True, ignore=ignored)
    shutil.copytree(modules, folder, dirs_exist_ok=True)


if __name__ == "__main__":
    tree(Path(__file__).parent.resolve(), Path(sys.argv[1]).resolve())
