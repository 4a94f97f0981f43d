#!/usr/bin/env bash
# Prometheus and promtool, unpacked from Debian's package without installing it; prints their folder.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/prometheus-$PROMETHEUS_VERSION"
alone prometheus
if [ ! -x "$dir/prometheus" ]; then
  say "Prometheus $PROMETHEUS_VERSION or what the system's packages have (seconds)"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "no apt-get and dpkg-deb to get Prometheus by"
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp/deb"
  fetch() { (cd "$tmp/deb" && apt-get download -qq prometheus >/dev/null 2>&1); }
  fetch || { as_root apt-get update -qq >&2; fetch; } || die "apt-get cannot download the package prometheus"
  dpkg-deb -x "$tmp"/deb/*.deb "$tmp/tree"
  install -m 755 "$tmp/tree/usr/bin/prometheus" "$tmp/tree/usr/bin/promtool" "$tmp"
  rm -rf "$tmp/deb" "$tmp/tree"
  finish "$tmp" "$dir"
fi
echo "$dir"
