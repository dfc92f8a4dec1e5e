"""Where no rank left a record, the reason is what a rank said, not what Slurm wrote while it ended the others."""

from __future__ import annotations

from pathlib import Path

from hpclm.recovery.rank_failures import last_output


def test_a_ranks_own_words_come_before_slurms(tmp_path: Path) -> None:
    first, second = tmp_path / "1_0_log.out", tmp_path / "1_1_log.out"
    first.write_text("slurmstepd-node0: error: *** STEP 1.0 ON node0 CANCELLED ***\n")
    second.write_text("Traceback\nImportError: no engine in this image\nslurmstepd-node0: error: *** CANCELLED ***\n")
    assert last_output([first, second]) == "ImportError: no engine in this image"
    assert last_output([first]) == "slurmstepd-node0: error: *** STEP 1.0 ON node0 CANCELLED ***"
    assert last_output([tmp_path / "absent"]) is None


def test_what_pyxis_and_apptainer_say(tmp_path: Path) -> None:
    """Pyxis's reason stands above Slurm's lines about its consequences; Apptainer's notes are no reason."""
    log = tmp_path / "7_batch.log"
    log.write_text(
        "slurmstepd: error: pyxis: container start failed with error code: 1\n"
        "slurmstepd: error: pyxis: printing enroot log file:\n"
        "slurmstepd: error: pyxis:     [ERROR] No such file or directory: /data/set one\n"
        "slurmstepd: error: pyxis: couldn't start container\n"
        "slurmstepd: error: spank: required plugin spank_pyxis.so: task_init() failed with rc=-1\n"
        "slurmstepd: error: Failed to invoke spank plugin stack\n"
        "srun: error: node0: task 0: Exited with exit code 1\n"
    )
    assert last_output([log]) == "pyxis: No such file or directory: /data/set one"
    log.write_text("FATAL:   could not open image /images/a.sif\nINFO:    Cleaning up image...\n")
    assert last_output([log]) == "FATAL:   could not open image /images/a.sif"
