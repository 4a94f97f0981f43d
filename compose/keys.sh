#!/bin/sh
# Keys and certificates of a fleet in Compose, by `berth nats`; what the service `keys` runs. They lie on a volume that only it
# sees; each other service is given its own on a volume of its own.
#   (nothing)              makes what is missing, as `docker compose up` does
#   add-host NAME          a key for a further machine; prints the variables that its compose/host.yaml wants
#   show-host NAME         prints them again
#   rotate WHO [--finish], remove-host NAME, update    as `berth nats` has them
#   take                   on a further machine: gives its agent what the variables hold
set -eu
umask 077
dir=/var/lib/berth/nats
hand=/hand

say() { echo "$*" >&2; }

# give TO MODE FILE NAME
give() { install -m "$2" "$3" "$hand/$1/$4"; }

hand_out() {
  for role in scheduler gateway health operator "agent-$BERTH_HOST"; do
    to=${role%"-$BERTH_HOST"}
    give "$to" 400 "$dir/keys/$role.nk" nats.nk
    give "$to" 444 "$dir/tls/ca.pem" ca.pem
  done
  # By their group: nats-server runs as root without its rights.
  for file in auth.conf tls/server.pem tls/server.key tls/ca.pem; do
    give server 440 "$dir/$file" "${file##*/}"
  done
}

named() {
  [ -n "${BERTH_NATS_NAME:-}" ] || {
    say "BERTH_NATS_NAME is not set: the name or address by which other machines reach NATS (compose/bus.yaml)"
    exit 2
  }
}

show_host() {
  named
  [ -r "$dir/keys/agent-$1.nk" ] || { say "no host $1 has a key: add-host $1 makes one"; exit 1; }
  echo "BERTH_HOST=$1"
  echo "BERTH_NATS_URL=tls://$BERTH_NATS_NAME:${BERTH_NATS_PUBLISH##*:}"
  echo "BERTH_NATS_NKEY=$(cat "$dir/keys/agent-$1.nk")"
  echo "BERTH_NATS_CA_BASE64=$(base64 -w0 "$dir/tls/ca.pem")"
}

complete() {
  names="--tls nats --tls nats-2 --tls nats-3 --tls localhost${BERTH_NATS_NAME:+ --tls $BERTH_NATS_NAME}"
  if [ -e "$dir/fleet.toml" ]; then what=update; else what=init; fi
  # shellcheck disable=SC2086 # names of servers hold no blanks
  berth nats "$what" --dir "$dir" $names --host "$BERTH_HOST" >/dev/null
}

case "${1:-}" in
  take)
    printf '%s\n' "$BERTH_NATS_NKEY" > "$hand/agent/nats.nk.part"
    printf '%s' "$BERTH_NATS_CA_BASE64" | base64 -d > "$hand/agent/ca.pem.part"
    give agent 400 "$hand/agent/nats.nk.part" nats.nk
    give agent 444 "$hand/agent/ca.pem.part" ca.pem
    rm "$hand"/agent/*.part
    exit ;;
  show-host) show_host "$2"; exit ;;
  "") complete ;;
  add-host) named; berth nats add-host "$2" --dir "$dir" >/dev/null; show_host "$2" ;;
  *) berth nats "$@" --dir "$dir" >/dev/null ;;
esac
hand_out
[ -z "${1:-}" ] || say "done; let NATS know: docker compose exec nats nats-server --signal reload=1"
