"""How a command runs in a container: one module per runtime, found by its name."""

from hpclm.containers.image import Image, parse_image
from hpclm.containers.launch import ContainerRequest, LaunchSpec, Mount
from hpclm.containers.runtime import launch_spec

__all__ = ["ContainerRequest", "Image", "LaunchSpec", "Mount", "launch_spec", "parse_image"]
