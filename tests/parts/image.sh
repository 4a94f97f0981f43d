#!/usr/bin/env bash
# A Docker image of llama-server, made without a registry: the program, its libraries, nothing else. It behaves like
# the published server image (listens on 0.0.0.0:8080, models by -m). Prints the image's name.
. "$(dirname "$0")/common.sh"
image="berth-test/llama-server:$LLAMA_CPP_PYTHON_VERSION"
server=$(bash "$PARTS/llama.sh")
alone image
if ! docker image inspect "$image" >/dev/null 2>&1; then
  say "image $image"
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  mkdir -p "$root"/{app,tmp,etc,models}
  chmod 1777 "$root/tmp"
  echo 'root:x:0:0:root:/:/bin/false' > "$root/etc/passwd"
  install -m 755 "$server" "$root/app/llama-server"
  # Every library at the path where the loader looks for it here, and the loader itself.
  ldd "$server" | grep -oE '/[^ ]+' | sort -u | while read -r library; do
    install -D -m 755 "$library" "$root$library"
  done
  tar -C "$root" --owner=0 --group=0 -c . | docker import \
    --change 'ENTRYPOINT ["/app/llama-server"]' --change 'ENV LLAMA_ARG_HOST=0.0.0.0' \
    --change 'WORKDIR /app' --change 'EXPOSE 8080' - "$image" >/dev/null
fi
echo "$image"
