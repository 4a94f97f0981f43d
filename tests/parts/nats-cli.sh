#!/usr/bin/env bash
# The NATS CLI, built from its Go module; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/nats-cli-$NATS_CLI_VERSION"
alone nats-cli
if [ ! -x "$dir/nats" ]; then
  say "NATS CLI $NATS_CLI_VERSION (Go module, 1 to 2 min)"
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp"
  need_go "$tmp"
  go_build "$tmp" "$tmp/nats" "github.com/nats-io/natscli@v$NATS_CLI_VERSION" github.com/nats-io/natscli/nats
  rm -rf "$tmp/src" "$tmp/venv" "$tmp/gopath" "$tmp/gocache"
  finish "$tmp" "$dir"
fi
echo "$dir/nats"
