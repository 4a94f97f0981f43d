# Shared by the scripts beside it: where things are cached, and how steps report themselves.
# Everything lands under one folder outside the checkout, in a sub-folder named after its version,
# so that a warm run finds it and a version bump builds it anew.
set -euo pipefail

BERTH_TEST_CACHE="${BERTH_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-tests}"
mkdir -p "$BERTH_TEST_CACHE"

NATS_SERVER_VERSION=2.15.1
NATS_CLI_VERSION=0.3.0
LLAMA_CPP_PYTHON_VERSION=0.3.36
OPENAI_VERSION=2.54.0
GGUF_VERSION=0.17.1

say() { printf '[parts] %s\n' "$*" >&2; }
die() { printf '[parts] error: %s\n' "$*" >&2; exit 1; }

# as_root CMD...: run it as root, by sudo where we are not root.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_install PKG...: install what is missing from Debian or Ubuntu.
apt_install() {
  command -v apt-get >/dev/null || die "please install $* (no apt-get here to do it)"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# finish TMP DIR: publish a finished build atomically, so that an interrupted one is never taken for whole.
finish() {
  rm -rf "$2"
  mv "$1" "$2"
}
