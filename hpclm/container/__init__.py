"""How a command enters an image."""

from hpclm.container.image import Image, parse_image
from hpclm.container.launch import PASSED, ContainerRequest, LaunchSpec, Mount, launch_spec

__all__ = ["PASSED", "ContainerRequest", "Image", "LaunchSpec", "Mount", "launch_spec", "parse_image"]
