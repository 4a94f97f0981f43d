#!/usr/bin/env bash
# Docker Compose v2, built from its Go module; prints the path of the plugin, which also runs by itself.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/compose-$COMPOSE_VERSION"
alone compose
go_program "$dir" docker-compose github.com/docker/compose/v2/cmd "github.com/docker/compose/v2@v$COMPOSE_VERSION"
echo "$dir/docker-compose"
