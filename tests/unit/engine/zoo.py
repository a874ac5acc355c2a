"""Tiny random models of every causal architecture that the installed transformers has, and what they are tried with.

Configurations are made by rule: whatever a configuration calls its width, its layers or its window is made small. What a
rule cannot know (sizes that must divide each other) is listed below by architecture.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from clear_ray.engine.architectures import unfit_reason

VOCABULARY = 97
WINDOW = 8
CONTEXT = 256
_MOST_PARAMETERS = 8_000_000

_RULE: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "window_size"), WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), CONTEXT),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size"), 8),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Wide weights: decided distributions, and answers that really depend on what came before.
    "initializer_range": 0.3,
}
_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_GROUPS = {**_MLA, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_TWO_KINDS = ("sliding_attention", "full_attention")
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _GROUPS,
    "axk2": _MLA,
    "bailing_hybrid": {"num_hidden_layers": 8, "layer_group_size": 4, **_GROUPS},
    "bamba": {"attn_layer_indices": [2]},
    "beam": _GROUPS,
    "blt": {"encoder_hash_byte_group_vocab": 64, "local_attention_window_len": WINDOW, "patching_mode": "static"},
    "blt_global_transformer": {"num_key_value_heads": 4},
    "blt_local_decoder": {"hidden_size_global": 32, "num_key_value_heads": 4},
    "blt_local_encoder": {"hidden_size_global": 32, "num_key_value_heads": 4},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(_TWO_KINDS, _ROPE), "layer_types": [*_TWO_KINDS] * 2},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _GROUPS,
    "deepseek_v32": {**_GROUPS, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 8},
    "dots1": {"n_shared_experts": 1, **_GROUPS},
    "dots3_note_text": {
        **_GROUPS,
        **{"index_topk": 64, "index_n_heads": 4, "index_head_dim": 16, "shared_experts_intermediate_size": 16},
        **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16},
        **{"swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8, "sliding_window_size": WINDOW},
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 16},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "activation_sparsity_pattern": [0.0] * 6,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm4_moe_lite": _MLA,
    # Of fewer positions a random indexer would choose among ties, which rounding breaks.
    "glm_moe_dsa": {**_MLA, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {**_MLA, "linear_head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": _MLA,
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": _MLA,
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (16, 16),
        "attention_head_size": 8,
    },
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "qwen4_exp_text": {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "hc_lowrank": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "youtu": _MLA,
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
        "layer_types": ["mamba", "hybrid", "mamba"] * 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma3_text, window over all layers": ("gemma3_text", {"layer_types": ["sliding_attention"] * 4}),
    "granitemoehybrid, attention only": ("granitemoehybrid", {"layer_types": ["attention"] * 4}),
    "llama, linear RoPE scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama, llama3 RoPE scaling": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama, YaRN": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama, dynamic RoPE scaling past its length": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "phi3, longrope past its length": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [4.0, 3.0, 2.0, 5.0],
                "short_factor": [1.0, 1.0, 1.0, 1.0],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 16}),
    "gpt_bigcode, keys of each head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "mixtral, window": ("mixtral", {"sliding_window": 5}),
    "mpt, no ALiBi": ("mpt", {"attn_config": {"alibi": False}}),
    "stablelm, norms of queries and keys": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3, window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
}
"""Label, architecture and what is different: settings that change what the layers do."""


def causal_architectures() -> list[str]:
    """Return every architecture that transformers loads as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str, **changes: Any) -> Any:
    """Return the configuration of a tiny model of an architecture.

    Raises:
        NotTriedError: No tiny one can be made by these rules.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = _parts(CONFIG_MAPPING[name], name)
            config = _made_small(CONFIG_MAPPING[name], name, {**parts, **_OWN.get(name, {}), **changes})
            if unfit_reason(config):  # told from its settings: no model of it is made
                return config
            parameters = _parameters(config)
    except ImportError as error:
        named = re.search(r"requires the (\w+) library", str(error))
        package = named[1] if named else error.name or ""
        raise NotTriedError(f"a part of it needs the package {package}", package) from error
    except Exception as error:
        raise NotTriedError(f"no tiny model of it could be made ({type(error).__name__})") from error
    if parameters > _MOST_PARAMETERS:
        raise NotTriedError("no tiny model of it could be made")
    return config


class NotTriedError(Exception):
    """There is no tiny model to be tried, be it for want of a package."""

    def __init__(self, reason: str, package: str = "") -> None:
        super().__init__(reason)
        self.package = package


def tiny_model(config: Any) -> Any:
    """Return a random model in float32, with the attention that transformers picks for it."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(torch.float32).eval()


def _made_small(config_class: Any, name: str, changes: dict[str, Any]) -> Any:
    taken = _settings_of(config_class)
    settings = {key: value for key, value in _RULE.items() if key in taken}
    return config_class(**{**settings, **_OWN.get(name, {}), **changes})


def _parts(config_class: Any, name: str) -> dict[str, Any]:
    """Return the settings of the parts of a model that has more than one, what reads, sees and hears, each made small."""
    whole = config_class(**_OWN[name]) if "text_config" in _OWN.get(name, {}) else config_class()
    if unfit_reason(whole):
        return {}
    parts = {name: part for name, part in vars(whole).items() if isinstance(part, PreTrainedConfig)}
    return {name: _made_small(type(part), part.model_type, {}) for name, part in parts.items()}


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        # A copy: some decoders of encoder-decoder models change what they are made from.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        return sum(tensor.numel() for tensor in model.parameters())


def _settings_of(config_class: Any) -> set[str]:
    names = set(config_class.attribute_map)
    for parent in config_class.__mro__[:-1]:
        names |= set(getattr(parent, "__annotations__", {}))
        names |= set(inspect.signature(parent.__init__).parameters)
    return names
