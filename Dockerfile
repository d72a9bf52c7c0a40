# The image of the receiver: the built-in actions, with PostgreSQL and tracing. What the steps do stands in image/, for tests run it.
# By tag: a digest belongs into the pipeline that builds the image and renews it.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY setup.cfg pyproject.toml constraints.txt README.md ./
COPY image image
COPY receiver receiver
COPY action_plugins action_plugins
RUN ["image/install", "/source", "/opt/alert-receiver"]

FROM python:${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="alert-receiver" \
      org.opencontainers.image.description="Runs an action plugin once per episode of a firing Prometheus alert" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# Process 1 must reap orphans and pass signals on. `receiver serve` reaps those of actions; `receiver web` and other programs do not.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/alert-receiver /opt/alert-receiver
RUN ["install", "--directory", "--owner=10001", "--group=10001", "/data"]
# The root can be read-only: /data holds the journal, /tmp all else. It fails closed without credentials.
ENV PATH=/opt/alert-receiver/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    RECEIVER_BIND=0.0.0.0:8080 \
    RECEIVER_DATA_DIR=/data
USER 10001:10001
VOLUME ["/data", "/tmp"]
EXPOSE 8080
ENTRYPOINT ["tini", "--", "receiver"]
CMD ["serve"]
