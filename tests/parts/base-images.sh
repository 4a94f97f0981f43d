#!/usr/bin/env bash
# The two images that the fleet's own image and Compose take from Docker Hub, made without it: Debian, and nats-server on it.
# Prints the name that both have behind `berth-test/debian:` and `berth-test/nats:`.
. "$(dirname "$0")/common.sh"
# Of this machine's own release, so that a binary that was built here finds its libraries.
suite=$(. /etc/os-release; echo "${VERSION_CODENAME:-bookworm}")
nats=$(bash "$PARTS/nats.sh")
tag="$suite-$NATS_SERVER_VERSION"
archive="$BERTH_TEST_CACHE/debian-$suite.tar"
alone base-images
if ! docker image inspect "berth-test/debian:$tag" >/dev/null 2>&1; then
  if [ ! -s "$archive" ]; then
    say "Debian $suite (debootstrap, half a minute)"
    command -v debootstrap >/dev/null || apt_install debootstrap
    root=$(mktemp -d)
    trap 'as_root rm -rf "$root"' EXIT
    as_root debootstrap --variant=minbase --include=busybox-static "$suite" "$root/root" >"$root/log" 2>&1 \
      || { tail -n 15 "$root/log" >&2; die "debootstrap failed"; }
    as_root tar -C "$root/root" --exclude=./var/cache/apt/archives --exclude=./var/lib/apt/lists \
      --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./dev -cf - . > "$archive.part"
    mv "$archive.part" "$archive"
  fi
  docker import --change 'CMD ["bash"]' "$archive" "berth-test/debian:$tag" >/dev/null
fi
if ! docker image inspect "berth-test/nats:$tag" >/dev/null 2>&1; then
  # As the published image on Alpine: nats-server as the entry point, busybox for its health check.
  container=$(docker create "berth-test/debian:$tag")
  docker cp "$nats" "$container:/usr/local/bin/nats-server" >/dev/null 2>&1
  links=$(mktemp -d)
  ln -s /bin/busybox "$links/wget"
  docker cp "$links/wget" "$container:/usr/bin/wget" >/dev/null 2>&1
  docker commit --change 'ENTRYPOINT ["nats-server"]' "$container" "berth-test/nats:$tag" >/dev/null
  docker rm "$container" >/dev/null
  rm -r "$links"
fi
echo "$tag"
