"""The architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpclm.core.spec import Activation, Normalization
from hpclm.recipe.schema.base import Count, Fraction, PathText, Section, Width


class Model(Section):
    """A GPT: its architecture, or an existing checkpoint that contains it, or both (which must then agree).

    A stage with `base` takes the architecture from there.
    """

    checkpoint: PathText | None = Field(
        default=None,
        description="an hpclm checkpoint, a Hugging Face folder (GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3), a "
        "checkpoint of Megatron-LM (torch_dist or torch), or a "
        "GPT .nemo archive (file or unpacked), which gives the rest",
    )
    num_layers: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, description="transformer layers")
    hidden_size: Width | None = Field(default=None, description="width of the hidden states")
    num_attention_heads: Width | None = Field(default=None, description="attention heads per layer")
    ffn_hidden_size: Width | None = Field(
        default=None, description="width of the MLP; default 4 h (of a glu: int(8h/3/64)·64)"
    )
    num_query_groups: Width | None = Field(default=None, description="key/value heads; default one per head")
    kv_channels: Width | None = Field(
        default=None, description="width of a head; default hidden_size / num_attention_heads"
    )
    max_position_embeddings: Count | None = Field(
        default=None, description="longest sequence; default the data's length"
    )
    vocab_size: Count | None = Field(default=None, description="default the tokenizer's")
    position_embedding: Literal["learned", "rope"] | None = Field(default=None, description="default learned")
    rotary_base: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        default=None, description="of rope; default 10000"
    )
    rotary_percent: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of a head that rope rotates; default 1"
    )
    rotary_interpolation: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="positions are divided by it; default 1"
    )
    rotary_scaling_factor: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        default=None, description="Llama 3.1's scaling of rope (8; 32 in Llama 3.2); default none"
    )
    normalization: Normalization | None = Field(
        default=None, description="default layernorm; layernorm1p is NeMo's, its scale stored less one"
    )
    layernorm_epsilon: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, description="default 1e-5")
    activation: Activation | None = Field(
        default=None, description="of the MLP; default gelu (tanh form; gelu_exact is the error function's)"
    )
    add_bias_linear: bool | None = Field(default=None, description="biases in the linear layers; default true")
    add_qkv_bias: bool | None = Field(
        default=None, description="biases of queries, keys and values alone (Qwen2); default false"
    )
    qk_norm: bool | None = Field(default=None, description="norm of each head's queries and keys; default false")
    num_moe_experts: Annotated[int, Field(ge=2, le=4096)] | None = Field(
        default=None, description="mixture of experts: MLPs of each layer, each ffn_hidden_size wide; default one MLP"
    )
    moe_router_topk: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="experts that each token goes to; default 2"
    )
    moe_aux_loss_coeff: Annotated[float, Field(ge=0, le=1e3)] | None = Field(
        default=None, description="of the loss that balances the experts' load; default 0.01"
    )
    moe_z_loss_coeff: Annotated[float, Field(ge=0, le=1e3)] | None = Field(
        default=None, description="of the loss that keeps the router's logits small; default 0"
    )
    tie_embeddings: bool | None = Field(default=None, description="output layer shares the embedding; default true")
    hidden_dropout: Fraction | None = Field(default=None, description="default 0")
    attention_dropout: Fraction | None = Field(default=None, description="default 0")
    init_std: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="standard deviation of new weights; default 0.02"
    )
