"""How a command enters an image."""

from hpclm.container.launch import ContainerRequest, LaunchSpec, Mount, launch_spec

__all__ = ["ContainerRequest", "LaunchSpec", "Mount", "launch_spec"]
