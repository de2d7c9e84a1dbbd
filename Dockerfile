# GPU image: TensorRT, the compiled plugin, and `msconv` with `serve`.
#
# THIS IMAGE HAS NOT BEEN BUILT YET. It is checked by hadolint (make lint-docker) and nothing else; nothing is claimed about it.
#
#     docker build -t msconv-deploy .
#     docker run --rm --gpus all -v "$PWD:/work" msconv-deploy doctor
#     docker run --rm --gpus all -v "$PWD:/work" -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 msconv-deploy \
#       serve MODEL.onnx --provider cuda --host 0.0.0.0
#
# The base is NVIDIA's TensorRT image rather than CUDA with wheels: there, TensorRT's libraries, Python bindings and C++ headers
# (which no wheel has) are of one version, so the plugin is compiled for the very TensorRT that loads it. An engine built here needs
# the same image to run. Give a digest for a build that can be repeated: --build-arg BASE=nvcr.io/nvidia/tensorrt@sha256:...
# The image and what is in it are under NVIDIA's licences.
ARG BASE=nvcr.io/nvidia/tensorrt:25.10-py3

# -- compile the plugin, install the package -------------------------------------------------------------------------
FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /source

# The bindings of TensorRT are the image's (--system-site-packages); everything else is pinned by hash. onnxruntime is left out
# of the file (--no-deps): onnxruntime-gpu brings the same module.
COPY .ci/requirements-image.txt ./
RUN python3 -m venv --system-site-packages /opt/msconv \
 && /opt/msconv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements-image.txt

COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY msconv_deploy msconv_deploy
COPY plugins plugins
RUN /opt/msconv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation . \
 && mkdir -p /opt/msconv/plugins

# In a folder without the checkout, so that the sources are those of the installed package.
WORKDIR /opt/msconv/plugins
ARG ARCHITECTURES=75;80;86;89;90;100;120
RUN major="$(/opt/msconv/bin/python -c 'import tensorrt; print(tensorrt.__version__.split(".")[0])')" \
 && /opt/msconv/bin/msconv plugin build --tensorrt "${major}" --arch "${ARCHITECTURES}" -o "libmsconv_trt${major}.so" \
 && rm -rf .cmake

# -- what is shipped -------------------------------------------------------------------------------------------------
FROM ${BASE}
COPY --from=build /opt/msconv /opt/msconv
RUN useradd --create-home --uid 10001 --shell /usr/sbin/nologin msconv
ENV PATH=/opt/msconv/bin:${PATH} \
    MSCONV_PLUGIN_PATH=/opt/msconv/plugins \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
EXPOSE 8000 8001
# For `serve` on its default port; other verbs end before the first check, and --no-healthcheck turns it off.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["msconv"]
CMD ["--help"]
