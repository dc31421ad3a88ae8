# One image for all of Predump: either node, and the command line that drives them.
# Builds with the classic builder and with BuildKit alike.
ARG PICTURES=1

FROM python:3.11-slim AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/predump
COPY requirements.lock /src/
RUN /opt/predump/bin/python -m pip install -q --require-hashes -r /src/requirements.lock

FROM packages AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mm_model mm_model
COPY livemigration livemigration
COPY source_node source_node
COPY dest_node dest_node
COPY predump predump
RUN /opt/predump/bin/python -m pip install -q --no-deps --no-build-isolation --no-compile --root /out . \
 && cd /out/opt/predump/lib/python3.11/site-packages \
 && /opt/predump/bin/python -m compileall -q --invalidation-mode unchecked-hash .

FROM packages AS runtime
# Neither what installs packages, nor their own tests, nor what debuggers want.
RUN /opt/predump/bin/python -m pip uninstall -q -y setuptools pip \
 && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends binutils \
 && cd /opt/predump/lib/python3.11/site-packages \
 && find numba numpy -depth -type d -name tests -exec rm -r {} + \
 && find . -name '*.so' -size +500k -not -path './*.libs/*' -exec strip --strip-unneeded {} + \
 && mkdir /pictures \
 && mv vl_convert vl_convert_python-*.dist-info /pictures/

# The clock that jumps, of the laboratory's faults; the compiler stays here.
FROM python:3.11-slim AS clock
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev
COPY predump/faults/clock_jump.c /src/
RUN gcc -O1 -shared -fPIC -o /clock_jump.so /src/clock_jump.c

FROM python:3.11-slim AS system
# tc shapes the laboratory's links, openssl makes its certificates.
RUN { command -v tc && command -v openssl; } > /dev/null \
 || { apt-get update -qq \
   && apt-get install -y -qq --no-install-recommends iproute2 openssl \
   && rm -rf /var/lib/apt/lists/*; }
RUN useradd --system --create-home --uid 1000 predump \
 && mkdir -p /app /state /tls /results /var/cache/predump \
 && chown predump:predump /state /tls /results /var/cache/predump
# The large layers first: they change with the lock file only.
COPY --from=runtime /opt/predump /opt/predump

# PICTURES=0 leaves out what draws: a node has no need of it.
FROM system AS pictures-0
FROM system AS pictures-1
COPY --from=runtime /pictures /opt/predump/lib/python3.11/site-packages

FROM pictures-${PICTURES} AS sources
COPY --from=build /out/ /
COPY --from=clock /clock_jump.so /usr/local/lib/predump-clock.so
ENV PATH=/opt/predump/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/cache/predump
USER predump

FROM sources AS compiled
# A folder `compiled`, if there is one, holds code that is compiled already (the compose tests' own).
COPY --chown=predump:predump scripts/warm.py compile[d] /tmp/warm/
# Compile the model into the image. Another kind of processor than the builder's compiles again, into
# the same folder; so may another user than predump (see as-owner).
RUN find /tmp/warm -maxdepth 1 -name 'mm_model-*' -exec cp -r {} /var/cache/predump/ \; \
 && python /tmp/warm/warm.py \
 && chmod -R a+rwX /var/cache/predump

FROM sources
COPY --from=compiled --chown=predump:predump /var/cache/predump /var/cache/predump
COPY scripts/as-owner.sh /usr/local/bin/as-owner
COPY scripts/lab-entry.sh /usr/local/bin/lab-entry
WORKDIR /app
COPY --chown=predump:predump scenarios scenarios
EXPOSE 50051 50052
ENTRYPOINT ["predump"]
CMD ["--help"]
