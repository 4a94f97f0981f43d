# One image for every role of the fleet: `berth gateway`, `scheduler`, `agent`, `health`.
#
#   docker build -t berth .
#
# Where the binary is built already, its folder is the context, and nothing is compiled:
#
#   docker build -f Dockerfile --build-arg BINARY=prebuilt -t berth FOLDER   # FOLDER/berth, FOLDER/ca-certificates.crt
#
# Images to build on are pinned by their digests: --build-arg BASE_IMAGE=debian:bookworm-slim@sha256:...
#
# It needs BuildKit, which leaves out the stage that is not used.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim
ARG BINARY=build

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p berth \
    && install -D target/release/berth /out/usr/local/bin/berth \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

FROM scratch AS prebuilt
COPY --chmod=755 berth /out/usr/local/bin/berth
# For NATS over TLS; the base image has none.
COPY --chmod=644 ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

FROM ${BINARY} AS binary

FROM ${BASE_IMAGE}
RUN groupadd --system --gid 65532 berth \
    && useradd --system --uid 65532 --gid 65532 --home-dir /var/lib/berth --shell /usr/sbin/nologin berth \
    && install -d -o 65532 -g 65532 -m 750 /var/lib/berth \
    # Volumes of keys are made as these are: compose/keys.sh.
    && install -d -o 65532 -g 65532 -m 750 /hand /hand/server /hand/scheduler /hand/gateway /hand/health /hand/agent /hand/operator
COPY --from=binary /out/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="berth" \
      org.opencontainers.image.description="LLM requests queue for GPU slots across a fleet; one OpenAI-compatible endpoint" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.documentation="https://github.com/berth-dev/berth/blob/main/docs/install.md" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="https://github.com/berth-dev/berth"
ENV BERTH_DATA_DIR=/var/lib/berth
WORKDIR /var/lib/berth
USER 65532:65532
EXPOSE 8421 8422
ENTRYPOINT ["/usr/local/bin/berth"]
CMD ["--help"]
