#!/usr/bin/env bash
# The NATS CLI, built from its Go module; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/nats-cli-$NATS_CLI_VERSION"
if [ ! -x "$dir/nats" ]; then
  command -v go >/dev/null || die "the NATS CLI is built with Go: install Go 1.24 or newer"
  say "NATS CLI $NATS_CLI_VERSION (Go module, about 35 s)"
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp/src"
  cd "$tmp/src"
  go mod init tools >/dev/null 2>&1
  printf 'package tools\n\nimport _ "github.com/nats-io/natscli/nats"\n' > tools.go
  sed -i '1i //go:build tools\n' tools.go
  go get "github.com/nats-io/natscli@v$NATS_CLI_VERSION" >&2 2>/dev/null || go get "github.com/nats-io/natscli@v$NATS_CLI_VERSION" >&2
  go mod tidy >/dev/null 2>&1
  go build -o "$tmp/nats" github.com/nats-io/natscli/nats >&2
  cd /; rm -rf "$tmp/src"
  finish "$tmp" "$dir"
fi
echo "$dir/nats"
