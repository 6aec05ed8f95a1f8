# The server's image: one binary on distroless, without a shell, not running as root. It builds with the BuildKit of
# Docker Engine 20.10, so it has no `# syntax` line, which would have to be pulled, and no named contexts. The base
# images are arguments, so that tools/images can pin them by digest.
ARG BUILD_IMAGE=rust:1.95-trixie
ARG RUN_IMAGE=gcr.io/distroless/cc-debian13:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
ENV CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

COPY Cargo.toml Cargo.lock build.rs ./
COPY crates crates
COPY migrations migrations
COPY src src
# Downloads and compiled crates stay in the builder's caches, so that a change recompiles only what it affects.
# `touch`, because cargo compares modification times, and the cache may be newer than a changed file.
# Cargo needs every target of the manifest to exist, although tests and examples aren't built here.
# /data is empty and only gives the volume its owner.
RUN --mount=type=cache,id=authfleet-cargo,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=authfleet-target,target=/src/target,sharing=locked \
    mkdir -p tests/it loadtest/bare \
    && touch tests/it/main.rs loadtest/bare/main.rs \
    && find build.rs crates migrations src -type f -exec touch {} + \
    && cargo build --release --locked --bin authfleet \
    && install -D -m 0755 target/release/authfleet /out/usr/local/bin/authfleet \
    && install -d -m 0700 /out/data

FROM ${RUN_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="authfleet" \
      org.opencontainers.image.description="A session-authentication server that runs as a fleet: any replica can answer any request" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /out/usr/local/bin/authfleet /usr/local/bin/authfleet
COPY --from=build --chown=10001:10001 /out/data /data
USER 10001:10001
WORKDIR /data
ENV DATABASE_URL=sqlite:///data/authfleet.db
EXPOSE 3000 9464
STOPSIGNAL SIGTERM
# Checks readiness, not only liveness: Redis and the users' database answer, and the replica isn't draining.
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=2 CMD ["authfleet", "healthcheck"]
ENTRYPOINT ["authfleet"]
CMD ["serve"]
