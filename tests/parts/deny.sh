#!/usr/bin/env bash
# cargo-deny; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/cargo-deny-$CARGO_DENY_VERSION"
alone cargo-deny
if [ ! -x "$dir/cargo-deny" ]; then
  say "cargo-deny $CARGO_DENY_VERSION (3 to 4 min)"
  tmp="$dir.tmp"
  env -u CARGO_TARGET_DIR cargo install -q --locked --root "$tmp" --target-dir "$tmp/target" \
    --version "$CARGO_DENY_VERSION" cargo-deny >&2
  mv "$tmp/bin/cargo-deny" "$tmp/cargo-deny"
  rm -rf "${tmp:?}/target" "${tmp:?}/bin" "$tmp"/.crates*
  finish "$tmp" "$dir"
fi
echo "$dir/cargo-deny"
