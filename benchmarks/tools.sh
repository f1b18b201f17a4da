#!/bin/sh
# Installs dnsperf, a C compiler and the peers where they are missing and we may.
missing=""
for pair in dnsperf:dnsperf cc:gcc knotd:knot nsd:nsd unbound:unbound dnsmasq:dnsmasq-base h2load:nghttp2-client; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq >/dev/null 2>&1
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null 2>&1
fi
exit 0
