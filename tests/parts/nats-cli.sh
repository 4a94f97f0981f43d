#!/usr/bin/env bash
# The NATS CLI, built from its Go module; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/nats-cli-$NATS_CLI_VERSION"
alone nats-cli
go_program "$dir" nats github.com/nats-io/natscli/nats "github.com/nats-io/natscli@v$NATS_CLI_VERSION"
echo "$dir/nats"
