#!/bin/sh
# Installs what the tests ask by, where it is missing and we may: dig, unbound, the authorities that answers are compared with, and C and Go for resolvers.
# Tests that need what is then still missing are skipped by name.
missing=""
for pair in dig:bind9-dnsutils unbound:unbound named:bind9 nsd:nsd knotd:knot musl-gcc:musl-tools go:golang-go promtool:prometheus kdig:knot-dnsutils stubby:stubby dnsdist:dnsdist haproxy:haproxy; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
echo "The tests ask by tools that are not installed:$missing"
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
for pair in dig:bind9-dnsutils unbound:unbound named:bind9 nsd:nsd knotd:knot musl-gcc:musl-tools go:golang-go promtool:prometheus kdig:knot-dnsutils stubby:stubby dnsdist:dnsdist haproxy:haproxy; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair%%:*} is not installed and cannot be: tests that need it are skipped"
done
exit 0
