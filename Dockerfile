# The images of both services, of NATS with its configuration, and of the demo's S3 server:
#
#     docker build --target uploader -t marketferry-uploader .
#     docker build --target puller -t marketferry-puller .
#
# The compose file does that. Written for the classic builder as well, which builds all stages above the one that is asked
# for: so nats comes first and the demo last.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG NATS_IMAGE=nats:2.15.1-alpine

# The stock image runs as root and has no folder that another user may write to.
FROM ${NATS_IMAGE} AS nats
RUN mkdir -p /data && chown 65532:65532 /data
COPY deploy/nats /etc/nats
USER 65532:65532
VOLUME /data
ENTRYPOINT ["nats-server"]
CMD ["--config", "/etc/nats/nats.conf"]

# The dependencies are a layer of their own, which only a change of a Cargo.toml or of Cargo.lock makes anew.
FROM ${RUST_IMAGE} AS dependencies
# release, or dev: not for use, but built in a third of the time.
ARG CARGO_PROFILE=release
# For the stages that go on from here, too.
ENV CARGO_PROFILE=$CARGO_PROFILE
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY common/Cargo.toml common/
COPY archive/Cargo.toml archive/
COPY store/Cargo.toml store/
COPY nats/Cargo.toml nats/
COPY uploader/Cargo.toml uploader/
COPY puller/Cargo.toml puller/
COPY tests/Cargo.toml tests/
RUN set -eu; \
    for crate in common archive store nats uploader puller tests; do mkdir -p $crate/src; : > $crate/src/lib.rs; done; \
    mkdir -p tests/it tests/src/bin/demo puller/benches; \
    for main in uploader/src/main puller/src/main puller/benches/decode tests/src/bin/demo/main tests/it/main; do \
        echo 'fn main() {}' > $main.rs; \
    done; \
    cargo build --locked --profile $CARGO_PROFILE --package uploader --package puller

FROM dependencies AS build
COPY . .
# The stand-ins above are younger than the sources as far as cargo can tell.
RUN set -eu; \
    find common archive store nats uploader puller -name '*.rs' -exec touch {} +; \
    cargo build --locked --profile $CARGO_PROFILE --package uploader --package puller; \
    mkdir -p /out; \
    find target -maxdepth 2 -type f \( -name uploader -o -name puller \) -exec cp {} /out/ \; ; \
    strip --strip-debug /out/*
# What a binary needs besides itself: the C library, the authorities that sign certificates, time zones (storage.bwlimit),
# and folders that whoever it runs as may write to.
RUN set -eu; \
    mkdir -p /root-fs/etc/marketferry /root-fs/etc/ssl/certs /root-fs/usr/share \
        /root-fs/var/lib/marketferry /root-fs/var/log/marketferry /root-fs/tmp; \
    chmod 1777 /root-fs/var/lib/marketferry /root-fs/var/log/marketferry /root-fs/tmp; \
    ldd /out/uploader /out/puller | grep -o '/[^ :]*\.so[^ :]*' | sort -u | xargs -I{} cp -L --parents {} /root-fs; \
    cp -L /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/; \
    cp -a /usr/share/zoneinfo /root-fs/usr/share/; \
    echo 'marketferry:x:65532:65532::/var/lib/marketferry:/none' > /root-fs/etc/passwd; \
    cp deploy/config.yaml /root-fs/etc/marketferry/

FROM scratch AS uploader
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="marketferry uploader" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
COPY --from=build /root-fs /
COPY --from=build /out/uploader /usr/local/bin/uploader
ENV FERRY_CONFIG=/etc/marketferry/config.yaml PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["uploader"]
CMD ["watch"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["uploader", "healthcheck"]

FROM scratch AS puller
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="marketferry puller" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
COPY --from=build /root-fs /
COPY --from=build /out/puller /usr/local/bin/puller
ENV FERRY_CONFIG=/etc/marketferry/config.yaml PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["puller"]
CMD ["run"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["puller", "healthcheck"]

# An S3 server and generated archives, for the profile demo; not for use.
FROM build AS build-demo
RUN set -eu; \
    find tests -name '*.rs' -exec touch {} +; \
    cargo build --locked --profile $CARGO_PROFILE --package tests --bin demo; \
    find target -maxdepth 2 -type f -name demo -exec cp {} /out/ \; ; \
    strip --strip-debug /out/demo; \
    mkdir -p /root-fs/demo/ferry /root-fs/demo-data; \
    chmod 1777 /root-fs/demo /root-fs/demo/ferry /root-fs/demo-data

FROM scratch AS demo
COPY --from=build-demo /root-fs /
COPY --from=build-demo /out/demo /usr/local/bin/demo
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["demo"]
