#!/usr/bin/env bash
# A registry for images (CNCF Distribution), built from its Go module; prints the path of the binary.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/registry-$REGISTRY_VERSION"
alone registry
go_program "$dir" registry github.com/distribution/distribution/v3/cmd/registry \
  "github.com/distribution/distribution/v3@v$REGISTRY_VERSION"
echo "$dir/registry"
