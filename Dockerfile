# The server's image: one static-enough binary on distroless, no shell, not root. Builds with Docker Engine 20.10's own
# BuildKit: no `# syntax` line, which would have to be pulled, and no named contexts.
FROM rust:1.95-trixie AS build
WORKDIR /src
ENV CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

# The dependencies are a layer of their own, compiled again only when a manifest changes. Cargo wants every target of the
# manifest to exist, so empty ones stand in; tests and examples are never built here.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,id=authfleet-cargo,target=/usr/local/cargo/registry,sharing=locked \
    mkdir -p src tests/it loadtest/bare \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs tests/it/main.rs >loadtest/bare/main.rs \
    && cargo build --release --locked --bin authfleet

COPY migrations migrations
COPY src src
# Newer than what was compiled from the empty files. /data is empty; it gives the volume mounted there its owner.
RUN --mount=type=cache,id=authfleet-cargo,target=/usr/local/cargo/registry,sharing=locked \
    find src migrations -type f -exec touch {} + \
    && cargo build --release --locked --bin authfleet \
    && install -D -m 0755 target/release/authfleet /out/usr/local/bin/authfleet \
    && install -d -m 0700 -o 10001 -g 10001 /out/data

FROM gcr.io/distroless/cc-debian13:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="authfleet" \
      org.opencontainers.image.description="A session-authentication server that runs as a fleet: any replica can answer any request" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /out/ /
USER 10001:10001
WORKDIR /data
ENV DATABASE_URL=sqlite:///data/authfleet.db
VOLUME /data
EXPOSE 3000 9464
STOPSIGNAL SIGTERM
# Ready, not only alive: Redis and the users' database answer, and the replica isn't draining.
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=2 CMD ["authfleet", "healthcheck"]
ENTRYPOINT ["authfleet"]
CMD ["serve"]
