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
