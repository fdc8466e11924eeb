"""The GPT of examples/gpt as the GPT-2 of the transformers package: names,
transposed linear layers and a config.json."""

import json
import os

from safetensors.torch import save_file

_BLOCK = {"norm1_weight": ("ln_1.weight", False), "norm1_bias": ("ln_1.bias", False),
          "qkv_weight": ("attn.c_attn.weight", True), "qkv_bias": ("attn.c_attn.bias", False),
          "proj_weight": ("attn.c_proj.weight", True), "proj_bias": ("attn.c_proj.bias", False),
          "norm2_weight": ("ln_2.weight", False), "norm2_bias": ("ln_2.bias", False),
          "fc_weight": ("mlp.c_fc.weight", True), "fc_bias": ("mlp.c_fc.bias", False),
          "out_weight": ("mlp.c_proj.weight", True), "out_bias": ("mlp.c_proj.bias", False)}


def write(folder, source, heads):
    """`source`: a stowage_checkpoint.Checkpoint with masters."""
    tensors = {}
    layers = 0
    for name, _, frozen, _ in source.params():
        tensor = source.tensor("frozen" if frozen else "master", name).float()
        unit, _, rest = name.partition(".")
        if unit == "block":
            index, _, part = rest.partition(".")
            target, transpose = _BLOCK[part]
            layers = max(layers, int(index) + 1)
            tensors[f"transformer.h.{index}.{target}"] = (
                tensor.t().contiguous() if transpose else tensor)
        else:
            target = {"embed.token": "transformer.wte.weight",
                      "embed.position": "transformer.wpe.weight",
                      "head.norm_weight": "transformer.ln_f.weight",
                      "head.norm_bias": "transformer.ln_f.bias",
                      "head.weight": "lm_head.weight"}.get(name)
            if target is None:
                raise ValueError(f"{name} has no place in GPT-2")
            tensors[target] = tensor
    vocabulary, width = tensors["transformer.wte.weight"].shape
    context = tensors["transformer.wpe.weight"].shape[0]
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
              "vocab_size": vocabulary, "n_positions": context, "n_ctx": context,
              "n_embd": width, "n_layer": layers, "n_head": heads,
              "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
              "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
              "tie_word_embeddings": "lm_head.weight" not in tensors,
              "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32"}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
