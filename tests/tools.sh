#!/bin/sh
# Installs dig where it is missing and we may. Tests that need what is then still missing are skipped by name.
command -v dig >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bind9-dnsutils >/dev/null 2>&1
fi
command -v dig >/dev/null 2>&1 || echo "dig is not installed and cannot be: tests that need it are skipped"
exit 0
