"""Megatron-LM's launch scripts as recipes: read without running them, every flag taken, without effect, or refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm import cli
from hpclm.core.batch_schedule import BatchSchedule
from hpclm.core.errors import RecipeError
from hpclm.core.parallel_spec import RecomputeSpec
from hpclm.core.spec import RampupSpec, StageSpec
from hpclm.planning import make_plan
from hpclm.recipe import load
from hpclm.recipe.import_report import imported
from hpclm.recipe.importers.megatron import other_flags, parse
from hpclm.recipe.importers.megatron.keys import NO_EFFECT, REFUSED, TAKEN
from hpclm.recipe.importers.megatron.shell import Script

ROOT = Path(__file__).parents[2]

# The flags and variables of the post "How to train a Language Model with Megatron-LM", its numbers and its layout.
POST = """#!/bin/bash
GPUS_PER_NODE=8
NNODES=1
NODE_RANK=0
WORLD_SIZE=$(($GPUS_PER_NODE*$NNODES))
DISTRIBUTED_ARGS="--nproc_per_node $GPUS_PER_NODE --nnodes $NNODES --node_rank $NODE_RANK --master_addr localhost"
CHECKPOINT_PATH=/workspace/experiments/codeparrot-small
VOCAB_FILE=vocab.json
MERGE_FILE=merges.txt
DATA_PATH=codeparrot_content_document
GPT_ARGS="--num-layers 12
--hidden-size 768
--num-attention-heads 12
--seq-length 1024
--max-position-embeddings 1024
--micro-batch-size 12
--global-batch-size 192
--lr 0.0005
--train-iters 150000
--lr-decay-iters 150000
--lr-decay-style cosine
--lr-warmup-iters 2000
--weight-decay .1
--adam-beta2 .999
--fp16
--log-interval 10
--save-interval 2000
--eval-interval 200
--eval-iters 10
"
TENSORBOARD_ARGS="--tensorboard-dir experiments/tensorboard"
python3 -m torch.distributed.launch $DISTRIBUTED_ARGS \\
        pretrain_gpt.py \\
        --tensor-model-parallel-size 1 \\
        --pipeline-model-parallel-size 1 \\
        $GPT_ARGS \\
        --vocab-file $VOCAB_FILE \\
        --merge-file $MERGE_FILE \\
        --save $CHECKPOINT_PATH \\
        --load $CHECKPOINT_PATH \\
        --data-path $DATA_PATH \\
        $TENSORBOARD_ARGS
"""

# As the scripts of the releases are made: arrays, arguments of the script with defaults, conditions, additions.
RELEASE = """#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
CHECKPOINT_PATH=${1:-"checkpoints/llama"}   # where to
DATA_PATH=$2
mkdir -p "$(dirname "$CHECKPOINT_PATH")"
GPUS_PER_NODE=8
NUM_NODES=4
DTYPE="bf16"
MODEL_ARGS=(
    --num-layers 32      # a comment
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention --num-query-groups 8
    --seq-length 8192
    --max-position-embeddings 8192
    --position-embedding-type rope
    --rotary-base 500000
    --normalization RMSNorm
    --swiglu
    --attention-dropout 0.0 --hidden-dropout 0.0
    --untie-embeddings-and-output-weights
    --disable-bias-linear
    # --num-layers 99
)
TRAINING_ARGS=(
    --micro-batch-size 1
    --global-batch-size 128
    --train-samples 12800000
    --rampup-batch-size 32 32 96000
    --lr-decay-samples 11520000
    --lr-warmup-samples 128000
    --lr 1.5e-4
    --min-lr 1e-5
    --lr-decay-style WSD
    --lr-wsd-decay-style cosine
    --lr-wsd-decay-samples 1280000
)
DTYPE_ARGS=()
if [[ "$DTYPE" == "fp8" ]] || [[ -z "$DTYPE" ]]; then
    DTYPE_ARGS+=("--fp8-format hybrid")
elif [[ "$DTYPE" == "bf16" ]]; then
    DTYPE_ARGS+=("--bf16")
else
    DTYPE_ARGS+=("--fp16")
fi
TRAINING_ARGS+=("${DTYPE_ARGS[@]}")
DATA=("--data-path 0.3 $DATA_PATH 0.7 other_document" "--split '99,1,0'")
if [ ! -f pretrain_gpt.py ]; then
    echo "no pretrain_gpt.py here"
    exit 1
fi
torchrun --nproc-per-node $GPUS_PER_NODE --nnodes=$NUM_NODES "pretrain_gpt.py" ${MODEL_ARGS[@]} "${TRAINING_ARGS[@]}" \\
    ${DATA[@]} --tensor-model-parallel-size $((2*2)) --sequence-parallel --use-distributed-optimizer \\
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model /models/llama --context-parallel-size 1
"""


def written(folder: Path, text: str, name: str = "pretrain.sh") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def spec_of(path: Path, *overrides: str) -> StageSpec:
    plan = make_plan(load(path, list(overrides)), files=False)
    assert plan.errors == ()
    spec = plan.stages[0].spec
    assert isinstance(spec, StageSpec)
    return spec


def test_modules_to_recompute(tmp_path: Path) -> None:
    flags = "--recompute-granularity selective --recompute-modules layernorm mlp"
    path = written(tmp_path, POST.replace("--fp16", f"--fp16 {flags}"))
    found = spec_of(path, "hpclm.model.vocab_size=50257").trainer.recompute
    assert found == RecomputeSpec("selective", modules=("layernorm", "mlp"))
    written(tmp_path, POST.replace("--fp16", f"--fp16 {flags} moe_act"))
    with pytest.raises(RecipeError, match=r"--recompute-modules: moe_act is not recomputed alone"):
        load(path)


def test_the_posts_script_is_the_shipped_recipe(tmp_path: Path) -> None:
    ours = spec_of(written(tmp_path, POST), "hpclm.model.vocab_size=50257")
    (tmp_path / "recipes").mkdir()
    shipped = written(tmp_path / "recipes", (ROOT / "recipes" / "codeparrot_small.yaml").read_text(), "recipe.yaml")
    theirs = spec_of(shipped)
    assert dataclasses.replace(ours, stage="", needs=theirs.needs) == dataclasses.replace(theirs, stage="")


def test_arrays_conditions_and_samples(tmp_path: Path) -> None:
    path = written(tmp_path, RELEASE)
    spec = spec_of(path, "data_path=[0.3,one_document,0.7,two_document]", "hpclm.model.vocab_size=128256")
    model = spec.model
    assert (model.num_layers, model.ffn_hidden_size, model.num_query_groups) == (32, 14336, 8)
    assert (model.rotary_base, model.normalization, model.activation) == (500000.0, "rmsnorm", "swiglu")
    assert not model.tie_embeddings
    assert not model.add_bias_linear
    assert model.hidden_dropout == 0.0
    parallel = spec.parallel
    assert (parallel.nodes, parallel.tensor, parallel.data, parallel.sequence_parallel) == (4, 4, 8, True)
    assert spec.trainer.precision == "bf16"
    grown = BatchSchedule(128, RampupSpec(32, 32, 96_000))
    assert spec.batch.rampup == RampupSpec(32, 32, 96_000)
    assert (spec.trainer.train_samples, spec.trainer.max_steps) == (12_800_000, grown.steps(12_800_000))
    optim = spec.optim
    assert (optim.schedule, optim.anneal, optim.anneal_steps) == ("wsd", "cosine", 1_280_000)
    assert (optim.warmup_steps, optim.constant_steps) == (128_000, 1_280_000)
    assert optim.from_zero
    assert spec.indexed is not None
    assert [Path(one).name for one in spec.indexed.paths] == ["one_document", "two_document"]
    assert spec.indexed.weights == [0.3, 0.7]
    assert spec.indexed.split == [99.0, 1.0, 0.0]
    assert spec.tokenizer.tokenizer_file == "/models/llama/tokenizer.json"


def test_what_is_known_only_when_it_runs_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, RELEASE)
    with pytest.raises(RecipeError) as caught:
        load(path)
    line = next(number for number, text in enumerate(RELEASE.split("\n"), 1) if "--data-path" in text)
    expected = f"{path}:{line} --data-path: $2 is known only when the script runs; give data_path=PREFIX"
    assert str(caught.value) == expected


def test_every_refused_flag_is_told_at_its_line(tmp_path: Path) -> None:
    text = POST.replace(
        "--fp16", "--fp16\n--moe-layer-freq 2\n--rampup-batch-size 16 16\n--fancy-new-flag\n--num-layer 3"
    )
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, text))
    lines = str(caught.value).split("\n")
    first = text.split("\n").index("--moe-layer-freq 2") + 1
    assert [line.partition(": ")[0] for line in lines] == [
        f"{tmp_path}/pretrain.sh:{first} --moe-layer-freq",
        f"{tmp_path}/pretrain.sh:{first + 2} --fancy-new-flag",
        f"{tmp_path}/pretrain.sh:{first + 3} --num-layer",
        f"{tmp_path}/pretrain.sh:{first + 1} --rampup-batch-size",
    ]
    assert "did you mean --num-layers?" in lines[2]
    # without them it is what it was
    left_out = ("~moe_layer_freq", "~rampup_batch_size", "~fancy_new_flag", "~num_layer")
    assert spec_of(written(tmp_path, text), *left_out, "hpclm.model.vocab_size=9") == spec_of(
        written(tmp_path, POST), "hpclm.model.vocab_size=9"
    )


def test_the_recipe_says_what_became_of_each_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, POST)
    assert cli.run(["recipe", "import", "pretrain.sh", "--out", "recipe.yaml"]) == 0
    said = capsys.readouterr().out
    flags = {word for word in POST.replace("\n", " ").replace('"', " ").split() if word.startswith("--")}
    for flag in flags:
        assert flag.replace("_", "-") in said
    assert "--log-interval" in said
    again = spec_of(tmp_path / "recipe.yaml", "model.vocab_size=50257")
    assert again == spec_of(tmp_path / "pretrain.sh", "hpclm.model.vocab_size=50257")


def test_a_file_of_flags(tmp_path: Path) -> None:
    words = Script(POST).command
    flags = [word.text for word in words[words.index(next(w for w in words if w.text == "pretrain_gpt.py")) + 1 :]]
    text = "\n".join(flags).replace("\n--", "\x00--").replace("\n", " ").replace("\x00", "\n")
    ours = spec_of(written(tmp_path, text, "flags.args"), "hpclm.model.vocab_size=9")
    theirs = spec_of(written(tmp_path, POST, "flags.sh"), "hpclm.model.vocab_size=9", "nproc_per_node=1")
    assert dataclasses.replace(ours, parallel=theirs.parallel) == theirs


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--num-layers 24 --num-layers-per-virtual-pipeline-stage 3", {"virtual_pipeline": 2}),
        ("--num-layers 24 --num-virtual-stages-per-pipeline-rank 3", {"virtual_pipeline": 3}),
        (
            "--num-layers 22 --num-layers-per-virtual-pipeline-stage 3 --account-for-embedding-in-pipeline-split"
            " --account-for-loss-in-pipeline-split",
            {"virtual_pipeline": 2, "account_for_embedding": True, "account_for_loss": True},
        ),
        ("--num-layers 26 --decoder-first-pipeline-num-layers 8", {"first_stage_layers": 8}),
        ("--num-layers 24 --context-parallel-size 2", {"context": 2}),
        (
            "--num-layers 24 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
            {"distributed_optimizer": True, "overlap": True},
        ),
        (
            "--num-layers 24 --use-distributed-optimizer --use-precision-aware-optimizer --optimizer-cpu-offload"
            " --optimizer-offload-fraction 1 --overlap-cpu-optimizer-d2h-h2d --exp-avg-dtype fp32",
            {"distributed_optimizer": True},
        ),
        ("--num-layers 24 --use-tp-pp-dp-mapping", {"order": "tp-cp-ep-pp-dp"}),
    ],
)
def test_flags_of_the_split_are_keys(tmp_path: Path, flags: str, expected: dict[str, object]) -> None:
    lines = f"""torchrun --nproc_per_node 8 --nnodes 4 pretrain_gpt.py {flags} --hidden-size 512
    --num-attention-heads 8 --seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 1
    --pipeline-model-parallel-size 4 --global-batch-size 256 --train-iters 100 --lr 1e-4 --data-path d
    --vocab-file v --merge-file m --tokenizer-type GPT2BPETokenizer --vocab-size 1000"""
    spec = spec_of(written(tmp_path, " ".join(lines.split())))
    split = spec.parallel
    assert spec.optim.offload is ("cpu-offload" in flags)
    assert {key: getattr(split, key) for key in expected} == expected


def test_a_script_that_saves_beside_the_training_does(tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path, POST.replace("--fp16", "--fp16 --async-save")), "hpclm.model.vocab_size=50257")
    assert spec.checkpoint.asynchronous
    assert not spec_of(written(tmp_path, POST), "hpclm.model.vocab_size=50257").checkpoint.asynchronous


# Megatron-LM's examples/mixtral/train_mixtral_8x7b_distributed.sh, its flags
MIXTRAL = """torchrun --nproc_per_node 8 --nnodes 8 pretrain_gpt.py --use-mcore-models --disable-bias-linear
    --seq-length 4096 --max-position-embeddings 32768 --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336
    --num-attention-heads 32 --init-method-std 0.01 --attention-dropout 0.0 --hidden-dropout 0.0 --normalization RMSNorm
    --position-embedding-type rope --swiglu --untie-embeddings-and-output-weights --group-query-attention
    --num-query-groups 8 --no-masked-softmax-fusion --no-position-embedding --rotary-base 1000000
    --num-experts 8 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2
    --moe-grouped-gemm --moe-token-dispatcher-type alltoall --overlap-param-gather --overlap-grad-reduce
    --tokenizer-type Llama2Tokenizer --tokenizer-model ../tokenizer.model --data-path ../corpus_text_document
    --split 99990,8,2 --micro-batch-size 1 --global-batch-size 256 --lr 1e-4 --train-iters 500000
    --lr-decay-iters 320000 --lr-decay-style cosine --min-lr 1.0e-5 --weight-decay 0.1 --lr-warmup-iters 500
    --clip-grad 1.0 --bf16 --tensor-model-parallel-size 1 --pipeline-model-parallel-size 4
    --expert-model-parallel-size 8 --use-distributed-optimizer --sequence-parallel --log-interval 1
    --save-interval 10000 --eval-interval 1000 --eval-iters 10 --no-load-optim --no-load-rng"""


def test_megatron_lms_mixtral_is_the_shipped_recipe(tmp_path: Path) -> None:
    ours = spec_of(written(tmp_path, " ".join(MIXTRAL.split())), "hpclm.model.vocab_size=32000")
    (tmp_path / "recipes").mkdir()
    shipped = (ROOT / "recipes" / "mixtral_8x7b_pretrain.yaml").read_text()
    theirs = spec_of(written(tmp_path / "recipes", shipped, "recipe.yaml"))
    assert ours.model == theirs.model
    assert (ours.model.num_moe_experts, ours.model.moe_router_topk, ours.parallel.expert) == (8, 2, 8)
    assert dataclasses.replace(ours.parallel, virtual_pipeline=4) == theirs.parallel
    assert (ours.batch, ours.optim.lr, ours.optim.min_lr) == (theirs.batch, theirs.optim.lr, theirs.optim.min_lr)
    plain = spec_of(
        written(tmp_path, " ".join(MIXTRAL.replace("--moe-aux-loss-coeff 1e-2", "").split())),
        "hpclm.model.vocab_size=32000",
    )
    assert plain.model.moe_aux_loss_coeff == 0, "Megatron-LM's default"


def test_experts_are_not_divided_where_there_are_none(tmp_path: Path) -> None:
    lone = POST.replace("--fp16", "--fp16\n--expert-model-parallel-size 1\n--expert-tensor-parallel-size 1")
    plain = spec_of(written(tmp_path, POST, "plain.sh"), "hpclm.model.vocab_size=9")
    assert spec_of(written(tmp_path, lone), "hpclm.model.vocab_size=9") == plain
    divided = written(tmp_path, lone.replace("model-parallel-size 1\n--expert-t", "model-parallel-size 2\n--expert-t"))
    plan = make_plan(load(divided, ["hpclm.model.vocab_size=9"]), files=False)
    assert "2 devices cannot share the experts of a model that has none" in str(plan.errors)


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    text = POST.replace("NNODES=1", f"NNODES=$(touch {tmp_path}/pwned; echo 1)").replace(
        "VOCAB_FILE=vocab.json", f"VOCAB_FILE=`touch {tmp_path}/pwned`"
    )
    with pytest.raises(RecipeError, match="known only when the script runs"):
        load(written(tmp_path, text))
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_read_without_running_is_said(tmp_path: Path) -> None:
    loop = POST.replace(
        'TENSORBOARD_ARGS="', 'for n in 1 2; do\n  GPT_ARGS="$GPT_ARGS --seed $n"\ndone\nTENSORBOARD_ARGS="'
    )
    with pytest.raises(RecipeError, match=r"pretrain.sh:\d+: a condition or loop around this cannot be read"):
        load(written(tmp_path, loop))
    with pytest.raises(RecipeError, match="has no flags of Megatron-LM"):
        load(written(tmp_path, "echo hello\n"))
    grows = 'A="x x x x x x x x x x"\n' + 'A="$A $A $A $A $A $A $A $A"\n' * 12 + "echo $A\n"
    with pytest.raises(RecipeError, match="more than 200000 characters"):
        load(written(tmp_path, grows))


WORDS = ["A=1", "B=(x", ")", "--lr 1", "$A", '"$B"', "'", '"', "${A:-2}", "$((A*3))", "if", "then", "fi", "else"]
WORDS += ["\n"]
WORDS += [
    "[[ $A == 1 ]]",
    "&&",
    ";",
    "#",
    "\\\n",
    "$(",
    "`",
    "pretrain_gpt.py",
    "for",
    "do",
    "done",
    "A+=(y)",
    "${",
    "=",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=40))
def test_any_text_is_a_script_or_one_message(parts: list[str]) -> None:
    message = "x.sh:"
    try:
        parse(" ".join(parts), "x.sh")
    except RecipeError as error:
        message = str(error)
    assert message.startswith("x.sh:")


ASSIGNED = ["A=1", 'B="two words"', "C=(a b 'c d')", "D=$A-${B}", 'E="$C"', "F=(${C[@]} $B)", "A+=x", "C+=(e)"]
SHOWN = ["$A", "${B}", '"$B"', "${C[@]}", '"${C[@]}"', "$D", "'$A'", "x$A.y", '"a ${D} b"', "${G:-none}", "$((2*3+4))"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(ASSIGNED), max_size=6), st.lists(st.sampled_from(SHOWN), min_size=1, max_size=5))
def test_expansions_are_those_of_bash(assignments: list[str], words: list[str]) -> None:
    """Against bash itself, for assignments and words that run nothing, with every variable set before."""
    before = ["A=0", "B=b", "C=(c)", "D=d", "E=e", "F=(f)"]
    script = "\n".join([*before, *assignments, f"printf '%s\\n' {' '.join(words)}"])
    ours = [word.text for word in Script(script.replace("printf '%s\\n'", "command.py")).command[1:]]
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ours == done.stdout.split("\n")[:-1]


def test_each_flag_has_one_fate() -> None:
    assert not set(TAKEN) & set(NO_EFFECT)
    assert not set(REFUSED) & (set(TAKEN) | set(NO_EFFECT))


def test_notes_are_json(tmp_path: Path) -> None:
    text, notes = imported(written(tmp_path, POST), [], tmp_path)
    assert text.startswith("# Made by `hpclm recipe import` from pretrain.sh.")
    made: list[Any] = json.loads(json.dumps([dataclasses.asdict(note) for note in notes]))
    assert {one["fate"] for one in made} == {"taken", "no effect"}


@pytest.mark.parametrize(
    ("flag", "value"), [("--lr-warmup-fraction", "nan"), ("--lr", "1e999"), ("--seed", "9" * 5000), ("--lr", "x")]
)
def test_a_number_that_is_none_is_told(tmp_path: Path, flag: str, value: str) -> None:
    with pytest.raises(RecipeError, match=r"is not a (whole )?number"):
        load(written(tmp_path, POST.replace("--fp16", f"--fp16\n{flag} {value}")))


def test_every_flag_of_every_release_has_a_fate() -> None:
    """Those of keys, those without effect, and those that are refused with a reason."""
    for name in other_flags.names() - {*TAKEN, *NO_EFFECT, *REFUSED}:
        _, why = other_flags.fate(name)
        assert "is no flag" not in why, name
    assert len(other_flags.names()) > 900


@pytest.mark.parametrize(
    ("flag", "idle", "words"),
    [
        ("distribute_saved_activations", True, "how it is computed"),
        ("no_overlap_p2p_communication", True, "how it is computed"),
        ("moe_deepep_num_sms", True, "how it is computed"),
        ("log_straggler", True, "metrics and logs"),
        ("ckpt_step", True, "checkpoints are in the run's folder"),
        ("override_opt_param_scheduler", True, "checkpoints are in the run's folder"),
        ("num_distributed_optimizer_instances", True, "how it is computed"),
        ("use_checkpoint_args", False, "write the flags that it stands for"),
        ("checkpoint_activations", False, "write --recompute-activations"),
        ("batch_size", False, "write --micro-batch-size"),
        ("loss_scale", False, "the scale of fp16 is found while training"),
        ("moe_shared_expert_gate", False, "experts are as Mixtral's"),
        ("fim_rate", False, "fill in the middle"),
        ("pipeline_model_parallel_layout", False, "has nothing like it here; remove it if"),
        ("allow_ambiguous_pad_tokens", False, "labels masked"),
        ("per_dataset_sequences_path", True, "how it is computed"),
        ("hybrid_context_parallel", True, "how it is computed"),
        ("hybrid_layer_pattern", False, "layers of that kind"),
        ("node_rnk", False, "did you mean --node-rank?"),
        ("master_adr", False, "did you mean --master-addr?"),
        ("overlap_grad_reduc", False, "did you mean --overlap-grad-reduce?"),
    ],
)
def test_flags_that_no_key_stands_for(flag: str, idle: bool, words: str) -> None:
    found, why = other_flags.fate(flag)
    assert found is idle
    assert words in why
