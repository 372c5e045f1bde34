# One image with every binary of Tidegate on a small base, without root.
#
#   docker build -t tidegate .
#   docker run --rm tidegate tidegate --help
#
# A small Debian and not an empty base: jobs of the kind `exec` run programs, and who looks into a container wants a shell. What such
# a job runs must be in the image: base one of your own on this one.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# Registry and compiled dependencies stay in caches between builds; only what changed is compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    set -eu; \
    CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --release --locked --bins; \
    mkdir -p /image/bin /image/data/import /image/etc/ssl/certs; \
    for binary in tidegate job-engine edge-gateway tidegate-worker; do \
        cp "target/release/$binary" /image/bin; \
    done; \
    cp worker/examples/airports.csv /image/data/import; \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs

FROM debian:bookworm-slim
COPY --from=build /image/bin /usr/local/bin
COPY --from=build /image/etc /etc
# What workers write: a new volume that is mounted here takes over owner and content.
COPY --from=build --chown=65532:65532 /image/data /data
USER 65532:65532
WORKDIR /data
CMD ["tidegate", "--help"]
