#!/bin/sh
# Installs the programs that tests run, where they are missing and we may. Tests that need what is then still missing are
# skipped by name. kubectl and helm are not here: distributions have none or old ones (CONTRIBUTING.md says which to take).
# Each program, and the package that it is in:
tools="dig:bind9-dnsutils unbound:unbound named:bind9 nsd:nsd knotd:knot musl-gcc:musl-tools go:golang-go"
tools="$tools promtool:prometheus kdig:knot-dnsutils ldns-verify-zone:ldnsutils nghttp:nghttp2-client stubby:stubby dnsdist:dnsdist haproxy:haproxy dnsviz:dnsviz"
missing=""
for pair in $tools; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
echo "The tests run programs that are not installed:$missing"
if [ "${TOOLS:-}" = no ]; then
    echo "TOOLS=no: nothing is installed, and the tests that need them are skipped by name"
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing them with apt-get (make test TOOLS=no leaves the system as it is)"
    apt-get update -qq >/dev/null 2>&1
    # One by one: what cannot be had does not keep the others away.
    for package in $missing; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1
    done
fi
for pair in $tools; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair%%:*} is not installed and cannot be: tests that need it are skipped"
done
exit 0
