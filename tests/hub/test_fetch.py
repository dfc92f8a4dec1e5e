"""`hpclm model fetch` and `hpclm data fetch`: the real client against a Hub on this machine."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import DECOYS, MODEL, User
from tests.support.hub_server import Hub, Repository
from tests.support.processes import LIMIT_S, Child, start
from tests.support.waiting import wait_until

# Neither code nor weights nor what nobody reads
WANTED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
_LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(sum(p.double().sum().item() for p in model.parameters()), end="")
print(AutoTokenizer.from_pretrained(sys.argv[1])("a b").input_ids)
"""
INDEX = "model.safetensors.index.json"


def loaded(user: User, name: str | Path) -> str:
    """What transformers makes of a model on a node without a network."""
    environment = user.environment(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    argv = [sys.executable, "-W", "ignore", "-c", _LOAD, str(name)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_background(user: User, *words: str | Path) -> Child:
    return start(user.argv(*words), env=user.environment(), cwd=user.folder, stderr=subprocess.PIPE, text=True)


def test_a_model_in_the_cache_is_found_by_its_folder_and_by_its_name(user: User, shards: list[str]) -> None:
    made = json.loads(user.hpclm("model", "fetch", MODEL, "--json").stdout)
    folder, files = Path(made["folder"]), user.hub.repositories[MODEL].files
    assert folder == user.home / "hub" / "models--org--tiny" / "snapshots" / made["revision"]
    assert made["revision"] == user.hub.repositories[MODEL].commit
    assert set(files_in(folder)) == WANTED | {INDEX, *shards}
    assert made["files"] == len(files_in(folder))
    assert made["bytes"] == sum(len(data) for data in files_in(folder).values())
    assert all(data == files[name] for name, data in files_in(folder).items())
    assert loaded(user, folder) == loaded(user, MODEL)
    again = len(user.hub.bodies())
    done = user.hpclm("model", "fetch", MODEL)
    assert f"in a recipe: model: {{checkpoint: {folder}}}" in done.stdout
    assert len(user.hub.bodies()) == again, "nothing is downloaded twice"


def test_a_plain_folder_has_real_files_and_nothing_else(user: User, shards: list[str]) -> None:
    done = user.hpclm("model", "fetch", MODEL, "--out", user.out)
    assert done.returncode == 0, done.stderr
    assert not any(path.is_symlink() for path in user.out.rglob("*"))
    assert set(files_in(user.out)) == WANTED | {INDEX, *shards, "hpclm-fetch.json"}
    assert [path.name for path in user.out.parent.iterdir()] == ["tiny"]
    assert not list(user.folder.rglob("escaped.json"))
    assert "64" in user.hpclm("model", "inspect", user.out).stdout
    assert loaded(user, user.out)


def test_code_is_fetched_only_when_it_is_asked_for(user: User) -> None:
    repository = user.hub.repositories[MODEL]
    config = json.loads(repository.files["config.json"])
    repository.files["config.json"] = json.dumps({**config, "auto_map": {"AutoModel": "modeling_tiny.M"}}).encode()
    done = user.hpclm("model", "fetch", MODEL, "--out", user.out)
    assert "--remote-code" in done.stderr
    assert not list(user.out.glob("*.py"))
    assert user.hpclm("model", "fetch", MODEL, "--out", user.folder / "code", "--remote-code").stderr == ""
    assert (user.folder / "code" / "modeling_tiny.py").read_bytes() == DECOYS["modeling_tiny.py"]


def test_one_file_is_taken_rather_than_pickles(user: User) -> None:
    user.hub.repositories["org/one"].files["pytorch_model.bin"] = b"\x80\x04N."
    assert user.hpclm("model", "fetch", "org/one", "--out", user.out).returncode == 0
    assert set(files_in(user.out)) == WANTED | {"model.safetensors", "hpclm-fetch.json"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pytorch_model.bin": b"\x80"}, ("pickles only", "save_pretrained", "refs/pr/N")),
        ({"tiny.gguf": b"GGUF"}, ("has tiny.gguf, but not model.safetensors",)),
        ({}, ("has neither model.safetensors",)),
        ({"model.safetensors": b"x"}, ("has no config.json",)),
        ({"config.json": b"{}", INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, ("'gone.safetensors'",)),
        ({"config.json": b"{}", INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}, ("'../x.safetensors'",)),
        ({"config.json": b"{}", INDEX: b"[]"}, ("names no file",)),
        ({"config.json": b"{}", "model.safetensors": b"no header"}, ("not a safetensors file", "as the Hub has them")),
    ],
)
def test_what_is_no_model_is_refused(user: User, files: dict[str, bytes], words: tuple[str, ...]) -> None:
    user.hub.repositories["org/other"] = Repository(files)
    message = user.refused("model", "fetch", "org/other", "--out", user.out, code=10)
    assert all(word in message for word in words), message
    assert not user.out.exists()


TOKEN = "hf_" + "Secret0" * 5


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("org/gated", {}, ("is gated", "Accept its terms at {hub}/org/gated", "set HF_TOKEN")),
        ("org/gated", {"HF_TOKEN": TOKEN}, ("the token in HF_TOKEN has no access", "{hub}/org/gated")),
        ("org/nobody", {}, ("no such model at {hub}", "private: set HF_TOKEN")),
        ("org/nobody", {"HF_TOKEN": TOKEN}, ("no such model", "the token in HF_TOKEN may not read it")),
        ("org/rows", {}, ("no such model",)),
        (MODEL, {"HF_TOKEN": "hf_" + "Revoked1" * 5}, ("the token in HF_TOKEN is not valid",)),
        (f"{MODEL}@v9", {}, ("has no revision 'v9'", "/org/tiny/tree/main")),
        (MODEL, {"HF_HUB_OFFLINE": "1"}, ("while HF_HUB_OFFLINE is set", "env -u HF_HUB_OFFLINE")),
        (MODEL, {"TRANSFORMERS_OFFLINE": "1"}, ("while TRANSFORMERS_OFFLINE is set",)),
        (MODEL, {"HF_ENDPOINT": "http://127.0.0.1:9"}, ("127.0.0.1:9: cannot be reached", "login node")),
        (MODEL, {"HF_ENDPOINT": "http://nowhere.invalid"}, ("cannot be reached", "login node")),
        ("org/name/more", {}, ("write ORG/NAME",)),
        (f"{MODEL}@../x", {}, ("write ORG/NAME",)),
        ("https://huggingface.co/org/tiny", {}, ("write ORG/NAME",)),
    ],
)
def test_each_refusal_is_one_message(user: User, name: str, changes: dict[str, str], words: tuple[str, ...]) -> None:
    user.hub.tokens.add(TOKEN)
    user.hub.repositories["org/gated"] = Repository(user.hub.repositories["org/one"].files, accepted={"hf_Other"})
    user.hub.repositories["org/rows"] = Repository({"rows.jsonl": b"{}"}, kind="datasets")
    message = user.refused("model", "fetch", name, changes=changes)
    assert message.count("\n") == 1
    assert all(word.format(hub=user.hub.address) in message for word in words), message
    assert "hf_" not in message


def test_the_hub_is_down(user: User) -> None:
    user.hub.down = True
    assert "answers with HTTP 503; try again later" in user.refused("model", "fetch", MODEL)


def test_the_token_opens_a_gated_model_and_stays_where_it_was(user: User) -> None:
    user.hub.tokens.add(TOKEN)
    user.hub.repositories["org/gated"] = Repository(user.hub.repositories["org/one"].files, accepted={TOKEN})
    done = user.hpclm("model", "fetch", "org/gated", "--out", user.out, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    written = {**files_in(user.out), **files_in(user.folder)}
    assert not any(TOKEN.encode() in data for data in written.values())
    stored = [one for one in user.hub.asked if one.server == "storage"]
    assert stored, "large files come from the storage"
    assert not any("authorization" in one.headers for one in stored)
    # the file of `hf auth login`
    user.home.mkdir(parents=True, exist_ok=True)
    (user.home / "token").write_text(TOKEN)
    assert user.hpclm("model", "fetch", "org/gated").returncode == 0


ON_DISK = 20 << 20  # of the 21 MB that arrive before the fault


def resumed(user: User, since: int) -> bool:
    """Whether only the rest of the file was asked for."""
    asked = [one for one in user.hub.bodies() if one in user.hub.asked[since:] and one.server == "storage"]
    return [one.headers.get("range") for one in asked] == [f"bytes={ON_DISK}-"]


def test_a_connection_that_ends_in_the_middle_is_taken_up(user: User, large: str) -> None:
    user.hub.cut["model.safetensors"] = [21_000_000, 1]
    assert user.hpclm("model", "fetch", large, "--out", user.out).returncode == 0
    assert files_in(user.out).items() >= user.hub.repositories[large].files.items()
    assert [one.headers.get("range") for one in user.hub.bodies() if one.server == "storage"] == [
        None,
        f"bytes={ON_DISK}-",
    ]


@pytest.mark.parametrize("to_cache", [False, True])
def test_a_killed_fetch_goes_on_where_it_was(user: User, large: str, to_cache: bool) -> None:
    user.hub.hold["model.safetensors"] = 21_000_000
    words = ("model", "fetch", large, *(() if to_cache else ("--out", str(user.out))))
    with in_background(user, *words) as child:
        assert user.hub.held.wait(LIMIT_S)
        found = user.home if to_cache else user.out.parent
        wait_until("a part", lambda: [p for p in found.rglob("*.incomplete") if p.stat().st_size == ON_DISK])
        child.kill()
        child.wait()
    assert not user.out.exists()
    user.hub.hold.clear()
    before = len(user.hub.asked)
    done = user.hpclm(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert resumed(user, before)
    folder = Path(json.loads(done.stdout)["folder"])
    assert files_in(folder).items() >= user.hub.repositories[large].files.items()
    assert not list(user.folder.rglob("*.incomplete"))


def test_ctrl_c_and_a_second_fetch_at_the_same_time(user: User, shards: list[str]) -> None:
    user.hub.hold[shards[0]] = 5000
    with in_background(user, "model", "fetch", MODEL, "--out", user.out) as child:
        assert user.hub.held.wait(LIMIT_S)
        assert "another fetch fills it" in user.refused("model", "fetch", MODEL, "--out", user.out)
        child.send_signal(2)
        assert child.wait() == 130
        assert child.stderr
        assert child.stderr.read() == "interrupted; the same command goes on where it was\n"
    assert not user.out.exists()


def test_a_damaged_body_is_fetched_again_and_never_kept(user: User, shards: list[str]) -> None:
    user.hub.corrupt.update({shards[0]: 1, "config.json": 1})
    assert user.hpclm("model", "fetch", MODEL, "--out", user.out).returncode == 0
    assert (user.out / shards[0]).read_bytes() == user.hub.repositories[MODEL].files[shards[0]]
    user.hub.corrupt[shards[0]] = 100
    message = user.refused("model", "fetch", MODEL, code=10)
    assert f"{shards[0]}: arrived 3 times with another content" in message
    assert not list((user.home / "hub").rglob(shards[0]))


def test_the_disk_has_too_little_room(user: User, shards: list[str]) -> None:
    user.hub.repositories[MODEL].sizes[shards[0]] = 45 * 2**60
    message = user.refused("model", "fetch", MODEL, "--out", user.out)
    assert "48,318,382,080.0 GiB are still to come" in message
    assert "GiB are free there" in message
    assert not any(one.path.endswith(shards[1]) for one in user.hub.bodies())


def test_the_disk_becomes_full(user: User) -> None:
    part = user.out.with_name(".tiny.fetching") / "model.safetensors.hpclm.incomplete"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    message = user.refused("model", "fetch", "org/one", "--out", user.out)
    assert "no space is left; make room, then the same command goes on" in message


def test_an_existing_folder_is_left_alone(user: User) -> None:
    user.out.mkdir(parents=True)
    assert user.hpclm("model", "fetch", "org/one", "--out", user.out).returncode == 0
    count = len(user.hub.bodies())
    assert user.hpclm("model", "fetch", "org/one", "--out", user.out).returncode == 0
    assert len(user.hub.bodies()) == count
    assert "has org/one at" in user.refused("model", "fetch", MODEL, "--out", user.out, code=10)
    (user.folder / "mine").mkdir()
    (user.folder / "mine" / "notes").touch()
    message = user.refused("model", "fetch", MODEL, "--out", user.folder / "mine")
    assert "was not made by `fetch`" in message


@pytest.mark.parametrize("to_cache", [False, True])
def test_a_fetched_folder_is_checked_without_a_network(user: User, shards: list[str], to_cache: bool) -> None:
    words = ("model", "fetch", MODEL, "--json", *(() if to_cache else ("--out", str(user.out))))
    made = json.loads(user.hpclm(*words).stdout)
    folder, offline = Path(made["folder"]), {"HF_HUB_OFFLINE": "1"}
    found = json.loads(user.hpclm("model", "fetch", "--check", folder, "--json", **offline).stdout)
    assert found == {**made, "digests_compared": made["files"]}
    data = (folder / shards[0]).read_bytes()
    (folder / shards[0]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (folder / shards[1]).write_bytes((folder / shards[1]).read_bytes()[:-10])
    (folder / "config.json").unlink()
    message = user.refused("model", "fetch", "--check", folder, code=10, changes=offline)
    assert f"{folder / shards[0]}: its content is not the Hub's" in message or to_cache
    assert f"{folder / shards[1]}: " in message
    assert f"{folder / 'config.json'}: is missing" in message
    assert message.count(str(folder)) == 4


def test_a_damaged_cache_is_mended(user: User, shards: list[str]) -> None:
    folder = Path(json.loads(user.hpclm("model", "fetch", MODEL, "--json").stdout)["folder"])
    data = (folder / shards[0]).read_bytes()
    (folder / shards[0]).resolve().write_bytes(bytes(len(data)))
    (folder / shards[1]).resolve().unlink()
    assert user.hpclm("model", "fetch", "--check", folder).returncode == 10
    assert user.hpclm("model", "fetch", MODEL).returncode == 0
    assert (folder / shards[0]).read_bytes() == data
    assert "every digest compared" in user.hpclm("model", "fetch", "--check", folder).stdout


def test_a_folder_of_other_origin_is_checked_by_its_headers(
    user: User, saved_models: tuple[dict[str, bytes], dict[str, bytes]], shards: list[str]
) -> None:
    user.out.mkdir(parents=True)
    for name, data in saved_models[0].items():
        (user.out / name).write_bytes(data)
    assert "digests are not known here" in user.hpclm("model", "fetch", "--check", user.out).stdout
    (user.out / shards[0]).write_bytes(saved_models[0][shards[0]][:-1])
    (user.out / shards[1]).unlink()
    message = user.refused("model", "fetch", "--check", user.out, code=10)
    assert "its header declares" in message
    assert f"{user.out / shards[1]}: is missing" in message


def test_a_revision_is_kept_under_its_name(user: User) -> None:
    assert user.hpclm("model", "fetch", f"{MODEL}@refs/pr/1").returncode == 0
    commit = user.hub.repositories[MODEL].commit
    assert (user.home / "hub" / "models--org--tiny" / "refs" / "refs" / "pr" / "1").read_text() == commit
    assert user.hpclm("model", "fetch", f"{MODEL}@{commit}").returncode == 0


def test_a_data_set_keeps_its_folders(user: User) -> None:
    files = {"README.md": b"# rows", "data/train.parquet": b"PAR1", "test.jsonl": b"{}\n", "load.py": b"", "a.csv": b""}
    user.hub.repositories["org/rows"] = Repository(files, kind="datasets")
    assert user.hpclm("data", "fetch", "org/rows", "--out", user.out).returncode == 0
    assert set(files_in(user.out)) == {"data/train.parquet", "test.jsonl", "hpclm-fetch.json"}
    folder = Path(json.loads(user.hpclm("data", "fetch", "org/rows", "--json").stdout)["folder"])
    assert set(files_in(folder)) == {"data/train.parquet", "test.jsonl"}
    assert user.hpclm("model", "fetch", "--check", folder).returncode == 0
    user.hub.repositories["org/code"] = Repository({"load.py": b""}, kind="datasets")
    assert "no parquet, jsonl or json file" in user.refused("data", "fetch", "org/code", code=9)


def test_a_terminal_sees_progress(user: User, large: str) -> None:
    user.hub.hold["model.safetensors"] = 21_000_000
    ours, theirs = pty.openpty()
    seen = b""

    def read() -> bool:
        nonlocal seen
        seen += os.read(ours, 4096)
        return re.search(rb"\r\x1b\[K1 of 2 files, 20\.0 MiB of 23\.8 MiB, [\d.,]+ MB/s, \d+ s left", seen) is not None

    try:
        argv = user.argv("model", "fetch", large, "--out", user.out)
        with start(argv, env=user.environment(), stderr=theirs, stdout=subprocess.DEVNULL):
            wait_until("a line of progress", read, seen=lambda: seen)
    finally:
        os.close(ours)
        os.close(theirs)


def test_without_the_client_it_says_what_to_install(user: User) -> None:
    (user.folder / "huggingface_hub.py").write_text("raise ImportError('not here')")
    path = f"{user.folder}:{user.environment()['PYTHONPATH']}"
    assert "install hpclm[hub]" in user.refused("model", "fetch", MODEL, changes={"PYTHONPATH": path})
    assert "give one of ORG/NAME and --check" in user.refused("model", "fetch")


def test_names_of_servers_lead_nowhere_else(user: User, hub: Hub) -> None:
    hub.repositories["org/rows"] = Repository({"../up.jsonl": b"{}", "a/../../up.jsonl": b"{}"}, kind="datasets")
    assert "no parquet, jsonl" in user.refused("data", "fetch", "org/rows", "--out", user.out, code=9)
    assert not list(user.folder.rglob("up.jsonl"))
