"""Pyxis: options of srun itself. Sources: the plugin's README, `--container-*`; its args.c and pyxis_slurmstepd.c.

They are given to srun and never in a directive: the batch script would then run inside, where there is no scontrol.
"""

from __future__ import annotations

from hpclm.containers.enroot import credentials, fstab, import_argv
from hpclm.containers.image import squashed
from hpclm.containers.launch import ContainerRequest, LaunchSpec, hook_variables, refuse_in_mounts
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
        mounts = (
            f"{fstab(one.source)}:{fstab(one.target)}" + (":ro" if one.read_only else "") for one in request.mounts
        )
        arguments.append(f"--container-mounts={','.join(mounts)}")
    if request.workdir:
        arguments.append(f"--container-workdir={request.workdir}")
    environment = {**request.environment, **hook_variables(request)}
    arguments.append(f"--container-env={','.join(sorted({*environment, *request.secrets}))}")
    # see enroot.py
    return LaunchSpec(environment={**environment, "ENROOT_LOGIN_SHELL": "n"}, srun_args=tuple(arguments))


RUNTIME = Runtime(
    name="pyxis",
    render=render,
    is_here=lambda probe: "--container-image" in (probe(["srun", "--help"]) or ""),
    rank=1,
    suffix=".sqsh",
    imports_with="enroot",
    import_argv=import_argv,
    imports_itself=True,
    credentials=credentials,
)
