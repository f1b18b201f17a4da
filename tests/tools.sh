#!/bin/sh
# Installs what the tests ask by, where it is missing and we may: dig, unbound (an upstream), and C and Go for resolvers.
# Tests that need what is then still missing are skipped by name.
missing=""
for pair in dig:bind9-dnsutils unbound:unbound musl-gcc:musl-tools go:golang-go promtool:prometheus; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq >/dev/null 2>&1
    # One by one: what cannot be had does not keep the others away.
    for package in $missing; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1
    done
fi
for pair in dig:bind9-dnsutils unbound:unbound musl-gcc:musl-tools go:golang-go promtool:prometheus; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair%%:*} is not installed and cannot be: tests that need it are skipped"
done
exit 0
