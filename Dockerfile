# leakaudit in a container: the wheel is built from this checkout, the image holds nothing but it and what it needs.
#   docker build -t leakaudit .                               # PyTorch's build for the CPU
#   docker build -t leakaudit:cuda --build-arg DEVICE=cuda .   # PyTorch's build with CUDA; run it with --gpus all
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" leakaudit demo
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
WORKDIR /src
COPY pyproject.toml MANIFEST.in README.md CHANGELOG.md CONTRIBUTING.md LICENSE constraints.txt ./
COPY leakaudit leakaudit
COPY attacks attacks
COPY defenses defenses
COPY reports reports
COPY examples/workflows examples/workflows
# Versions and hashes are those of constraints.txt. PyTorch's build for the CPU comes from an index of its own, as other files:
# it has the same version and is not checked by these hashes.
RUN set -eu; python -m venv /opt/leakaudit; pip="/opt/leakaudit/bin/pip --disable-pip-version-check install --no-cache-dir"; \
    if [ "$DEVICE" = cpu ]; then \
        $pip --no-deps --index-url https://download.pytorch.org/whl/cpu $(grep -oE '^torch(vision)?==[0-9.]+' constraints.txt); \
        left_out='^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)=='; \
    elif [ "$DEVICE" = cuda ]; then left_out='^$'; \
    else echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2; fi; \
    sed -e ':a' -e '/\\$/{N;s/\\\n//;ta' -e '}' constraints.txt | grep -vE "$left_out" >/tmp/versions.txt; \
    $pip --require-hashes --no-deps -r /tmp/versions.txt; \
    $pip --no-deps --no-build-isolation .; \
    /opt/leakaudit/bin/pip check

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="leakaudit" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/leakaudit /opt/leakaudit
RUN useradd --create-home --uid 1000 audit && install -d -o audit -g audit /work
# A user that `--user` names has no home and no name; libraries ask for both.
ENV PATH=/opt/leakaudit/bin:$PATH HOME=/tmp USER=audit PYTHONDONTWRITEBYTECODE=1
USER audit
WORKDIR /work
ENTRYPOINT ["leakaudit"]
CMD ["--help"]
