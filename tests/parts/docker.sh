#!/usr/bin/env bash
# A Docker engine that answers. Prints nothing if one runs already, else the process id of the one it started,
# which whoever called stops by `docker.sh stop PID`.
. "$(dirname "$0")/common.sh"

answers() { timeout 20 docker info >/dev/null 2>&1; }

if [ "${1:-}" = stop ]; then
  [ -n "$(timeout 20 docker ps -q 2>/dev/null)" ] && { say "Docker is left running: containers run in it"; exit 0; }
  as_root kill "$2" 2>/dev/null || true
  for _ in $(seq 100); do as_root kill -0 "$2" 2>/dev/null || exit 0; sleep 0.1; done
  die "dockerd ($2) does not stop"
fi

command -v docker >/dev/null && answers && exit 0

if command -v docker >/dev/null && [ -S /var/run/docker.sock ] && [ "$(id -u)" != 0 ] \
  && as_root docker info >/dev/null 2>&1; then
  die "a Docker engine runs, but $(id -un) may not use it: add yourself to the group docker, or run this as root"
fi

# iptables: dockerd cannot publish ports without it. Debian's docker-cli may be a package of its own.
missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v docker >/dev/null || missing+=(docker-cli)
as_root sh -c 'command -v iptables' >/dev/null || missing+=(iptables)
if [ "${#missing[@]}" -gt 0 ]; then
  apt_install "${missing[@]}" 2>/dev/null || apt_install docker.io iptables
  # Installing may have started it, where there is systemd.
  answers && exit 0
fi

alone dockerd
answers && exit 0
say "starting dockerd"
log="$BERTH_TEST_CACHE/dockerd.log"
: > "$log"
# The socket belongs to our group, so that tests reach it without root.
as_root sh -c 'nohup setsid dockerd --group "$1" >"$2" 2>&1 9>&- & echo $!' _ "$(id -g)" "$log" > "$BERTH_TEST_CACHE/dockerd.started"
pid=$(cat "$BERTH_TEST_CACHE/dockerd.started")
for _ in $(seq 120); do
  if answers; then echo "$pid"; exit 0; fi
  as_root kill -0 "$pid" 2>/dev/null || break
  sleep 0.5
done
tail -n 15 "$log" >&2
die "dockerd does not answer; the end of $log is above. It needs root, cgroups and iptables"
