"""Writes a tiny llama-architecture model with random weights (always the same ones) in Hugging Face's layout, and a
LoRA adapter for it in peft's.

It loads in a real vLLM and answers noise: 259 byte-level tokens, 64 wide, 2 layers. The adapter changes what it
answers. Usage: python tiny_hf.py FOLDER, which gets `model` and `adapter`.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDE, LAYERS, RANK = 64, 2, 8
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT
    return fast


def main(folder: pathlib.Path) -> None:
    torch.manual_seed(8421)
    config = LlamaConfig(
        vocab_size=320, hidden_size=WIDE, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, initializer_range=0.3,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")

    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    targets = ["q_proj", "v_proj", "o_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": RANK,
        "lora_alpha": 64, "lora_dropout": 0.0, "bias": "none", "target_modules": targets, "inference_mode": True,
    }))
    tensors = {}
    for layer in range(LAYERS):
        for target in targets:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDE)
            tensors[f"{name}.lora_B.weight"] = torch.randn(WIDE, RANK)
    save_file(tensors, adapter / "adapter_model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tiny_hf.py FOLDER")
    main(pathlib.Path(sys.argv[1]))
