"""Base, build, push, run, sign and list the image without a Docker engine: buildah, podman, skopeo, mmdebstrap."""
