# Authwatch's image: the receiver, the worker and the migrations, by the command it is given. No embedded servers.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv --without-pip /opt/authwatch
WORKDIR /build
# The locked packages are a layer of their own, which a change of our code does not build again. They come as wheels
# only: nobody's build script runs, and no compiler is needed.
COPY requirements-image.lock ./
RUN python3 -m pip --python /opt/authwatch/bin/python install \
    --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md ./
COPY service service
COPY workers workers
COPY migrations migrations
RUN python3 -m pip --python /opt/authwatch/bin/python install \
    --no-cache-dir --disable-pip-version-check --no-index --no-deps --no-build-isolation . \
    && python3 -m pip --python /opt/authwatch/bin/python uninstall --yes setuptools

FROM ${PYTHON_IMAGE}
# A fixed number, so that volumes and policies ("run as non-root") can name it. The user owns nothing in the image.
RUN groupadd --gid 10001 authwatch \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin authwatch
COPY --from=build /opt/authwatch /opt/authwatch
WORKDIR /app
COPY alert_rules alert_rules
# The root file system may be read-only: nothing is written but below /tmp.
ENV PATH=/opt/authwatch/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["authwatch"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
