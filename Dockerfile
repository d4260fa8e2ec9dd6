# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY . .
ENV CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags='-s -w' -o /out/qstash-receiver . && \
    go build -trimpath -ldflags='-s -w' -o /out/volume ./volume

# A volume on Fly belongs to root. This image starts as root, hands the volume over and goes on as nonroot.
# It is built only where fly.toml says so (see README).
FROM gcr.io/distroless/static-debian12:latest AS volume
COPY --from=build /out/qstash-receiver /out/volume /
EXPOSE 8080
ENTRYPOINT ["/volume", "/data", "/qstash-receiver"]

# The image that is built otherwise: CA certificates, time zones, no shell, user 65532.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/qstash-receiver /
USER nonroot
EXPOSE 8080
ENTRYPOINT ["/qstash-receiver"]
