# syntax=docker/dockerfile:1
FROM golang:1.26 AS build
WORKDIR /src
# The modules change less often than the code: they stay in the cache.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/ . ./volume

# A volume on Fly belongs to root. This image starts as root, hands the volume over and goes on as nonroot.
# It is built only where fly.toml says so (see README, "Two machines, or a disk").
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
