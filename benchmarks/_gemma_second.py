"""Logits of Gemma 3 by another implementation, that of the package transformers; imports torch when it is called.

It shares nothing with ours but the decoded weights, which are put into a model built from a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def available() -> bool:
    """Whether torch and transformers can be imported."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def second_logits(sizes: Mapping[str, Any], weights: Mapping[str, np.ndarray], prompts: Sequence[Sequence[int]]) -> Any:
    """Logits of the token after each prompt, a list of arrays (vocabulary,); ``sizes`` are a GemmaShape's fields."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    L, period = sizes["layers"], sizes["period"]
    config = Gemma3TextConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["width"], intermediate_size=sizes["hidden"],
        num_hidden_layers=L, num_attention_heads=sizes["heads"], num_key_value_heads=1, head_dim=sizes["head"],
        query_pre_attn_scalar=sizes["head"], sliding_window=sizes["window"], rms_norm_eps=sizes["eps"],
        rope_theta=sizes["base_global"], rope_local_base_freq=sizes["base_local"], tie_word_embeddings=True,
        layer_types=["sliding_attention" if (i + 1) % period else "full_attention" for i in range(L)],
        max_position_embeddings=sizes["longest"], attn_implementation="eager",
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    state = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"] - 1,
    }
    for name, weight in weights.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            # Its norms multiply by 1 + weight.
            state[f"model.layers.{layer}.{NAMES[part]}.weight"] = weight - 1 if part.endswith("norm") else weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in state.items()})
    with torch.no_grad():
        return [model(torch.tensor([list(p)]), logits_to_keep=1).logits[0, -1].numpy() for p in prompts]
