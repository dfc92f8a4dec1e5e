"""Pyxis: options of srun itself. Sources: the plugin's README, `--container-*`; its args.c, common.c and
pyxis_slurmstepd.c.

They are given to srun and never in a directive: the batch script would then run inside, where there is no scontrol.
"""

from __future__ import annotations

from hpclm.containers.enroot import credentials, fstab, import_argv
from hpclm.containers.image import squashed
from hpclm.containers.launch import ContainerRequest, LaunchSpec, Probe, hook_variables, refuse_in_mounts
from hpclm.containers.runtime import Runtime


def render(request: ContainerRequest) -> LaunchSpec:
    """Options for srun; the environment comes from the job, and wins over the image's where it is named."""
    # Mounts become `echo "SOURCE TARGET …"` in a script that bash runs on the node, and then lines of an fstab.
    refuse_in_mounts(request, ",:", "pyxis splits paths at it")
    refuse_in_mounts(request, '"$`\\', "pyxis passes it to a shell")
    arguments = [f"--container-image={squashed(request.image, 'pyxis').pyxis}"]
    arguments.append("--container-mount-home" if request.home else "--no-container-mount-home")
    arguments.append("--container-writable" if request.writable else "--container-readonly")
    if request.mounts:
        arguments.append(f"--container-mounts={','.join(_mounts(request))}")
    if request.workdir:
        arguments.append(f"--container-workdir={request.workdir}")
    environment = {**request.environment, **hook_variables(request)}
    arguments.append(f"--container-env={','.join(sorted({*environment, *request.secrets}))}")
    # see enroot.py
    return LaunchSpec(environment={**environment, "ENROOT_LOGIN_SHELL": "n"}, srun_args=tuple(arguments))


def _mounts(request: ContainerRequest) -> list[str]:
    """`SOURCE:TARGET[:ro]` of every mount, with white space as this Pyxis takes it."""
    paths = [path for mount in request.mounts for path in (mount.source, mount.target)]
    spaces = any(space in path for path in paths for space in " \t\n")
    written = str if spaces and _escapes_itself(_options(request.probe)) else fstab
    return [f"{written(one.source)}:{written(one.target)}" + (":ro" if one.read_only else "") for one in request.mounts]


def _escapes_itself(options: str) -> bool:
    """Pyxis 0.24 writes white space in mounts as an fstab does; before, whoever calls it has to. No option tells the
    version; `--container-unshare` came with 0.24. Without an srun to ask (a dry run elsewhere) it is taken as newer."""
    return not options or "--container-unshare" in options


def _options(probe: Probe) -> str:
    return probe(["srun", "--help"]) or ""


RUNTIME = Runtime(
    name="pyxis",
    render=render,
    is_here=lambda probe: "--container-image" in _options(probe),
    rank=1,
    suffix=".sqsh",
    imports_with="enroot",
    import_argv=import_argv,
    imports_itself=True,
    credentials=credentials,
)
