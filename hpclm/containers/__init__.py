"""How a command enters an image."""

from hpclm.containers.image import Image, parse_image
from hpclm.containers.launch import PASSED, ContainerRequest, LaunchSpec, Mount, launch_spec

__all__ = ["PASSED", "ContainerRequest", "Image", "LaunchSpec", "Mount", "launch_spec", "parse_image"]
