#!/bin/sh
# `make image-proof`: builds docker/Dockerfile without an engine or a registry, and runs the image as a Pod would.
#
# The base images are stand-ins made of Debian 13's packages (what the real ones are made of), the builder is buildah, the
# runtime runc. The image runs with a read-only root, as uid 65532, under no_new_privs, with NET_BIND_SERVICE alone, in a
# network of its own. Needs root; buildah, mmdebstrap, runc, dig and curl; Debian's and PyPI's servers. About 5 minutes, most of them for the compilation.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
name=kdns-proof-$$
trap 'runc delete -f $name 2>/dev/null || true; buildah rm -a >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot

# python:3.13-slim-trixie and debian:trixie-slim.
mmdebstrap -q --variant=minbase --include=ca-certificates,python3,python3-pip,python3-dev trixie "$work/debian.tar"
base=$(buildah from scratch)
buildah add -q "$base" "$work/debian.tar" / >/dev/null
buildah copy -q "$base" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ >/dev/null
buildah run "$base" sh -c 'ln -sf python3 /usr/bin/python; rm -f /usr/lib/python3*/EXTERNALLY-MANAGED'
buildah commit -q "$base" docker.io/library/python:3.13-slim-trixie >/dev/null
buildah tag docker.io/library/python:3.13-slim-trixie docker.io/library/debian:trixie-slim

# distroless/python3: the C and C++ libraries, the interpreter and its standard library; no shell, no package manager.
mmdebstrap -q --variant=extract --include=base-files,netbase,media-types,libstdc++6,libgcc-s1,libssl3t64,zlib1g,libffi8,libbz2-1.0,liblzma5,libsqlite3-0,libuuid1,libexpat1,python3.13-minimal,libpython3.13-stdlib \
    trixie "$work/distroless.tar"
bare=$(buildah from scratch)
buildah add -q "$bare" "$work/distroless.tar" / >/dev/null
buildah copy -q "$bare" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ >/dev/null
buildah commit -q "$bare" gcr.io/distroless/python3-debian13:nonroot >/dev/null

buildah bud -q --network host --pull-never -f docker/Dockerfile -t kdns:proof . >/dev/null
root=$(buildah mount "$(buildah from --pull-never localhost/kdns:proof)")
echo "size: /app $(du -sm "$root/app" | cut -f1) MB, all $(du -sm "$root" | cut -f1) MB"
getcap "$root/usr/bin/python3.13" | sed "s#^$root##"

# The runtime's bundle: what the Pod's security context asks for.
mkdir -p "$work/bundle" "$work/etc" "$root/etc/coredns" "$root/proc" "$root/sys" "$root/dev"
cp kdns/cli/sample/cluster.yaml "$work/etc"
printf '.:53 {\n errors\n health\n ready\n kubernetes cluster.local in-addr.arpa {\n  manifests /etc/coredns/cluster.yaml\n }\n prometheus :9153\n reload\n}\n' \
    > "$work/etc/Corefile"
(cd "$work/bundle" && runc spec && python3 - "$root" "$work/etc" <<'END'
import json, sys
spec = json.load(open("config.json"))
alone = ["CAP_NET_BIND_SERVICE"]
spec["process"].update(
    terminal=False, user={"uid": 65532, "gid": 65532}, noNewPrivileges=True,
    args=["/usr/bin/python3.13", "-m", "kdns", "-conf", "/etc/coredns/Corefile"],
    env=["PATH=/usr/bin", "PYTHONPATH=/app", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"],
    capabilities={"bounding": alone, "effective": alone, "permitted": alone, "inheritable": alone},
)
spec["root"] = {"path": sys.argv[1], "readonly": True}
spec["mounts"].append({"destination": "/etc/coredns", "type": "bind", "source": sys.argv[2], "options": ["rbind", "ro"]})
json.dump(spec, open("config.json", "w"))
END
)
(cd "$work/bundle" && runc run --no-pivot "$name" > "$work/log" 2>&1) &
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    sleep 0.5
    ! grep -q '^linux/' "$work/log" || break
done
cat "$work/log"
pid=$(runc state "$name" | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|VmRSS)' "/proc/$pid/status"
inside="nsenter -t $pid -n"
test "$($inside dig @127.0.0.1 web.shop.svc.cluster.local +short)" = 10.96.1.5
test "$($inside dig @127.0.0.1 +tcp -x 10.96.1.5 +short)" = web.shop.svc.cluster.local.
test "$($inside curl -s http://127.0.0.1:8181/ready)" = OK
$inside curl -s http://127.0.0.1:9153/metrics | grep -q '^coredns_build_info'
runc kill "$name" TERM
wait
echo "the image builds, and serves port 53 as uid 65532"
