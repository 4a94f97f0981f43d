"""Writes a tiny llama-architecture model with random weights (always the same ones) as a GGUF file, and beside it a LoRA
adapter for it, `adapter.gguf`, which changes what it answers.

It loads in a real llama-server and streams noise at hundreds of tokens a second: 259 byte-level tokens and a few
words, 64 wide, 2 layers, f32, about 480 KB. Usage: python tiny_gguf.py FILE
"""

import os
import sys

import gguf
import numpy as np

WIDE, LAYERS, HEADS, INNER, CONTEXT = 64, 2, 2, 128, 131072
RANK = 8
WORDS = ["▁", "▁the", "▁ship", "▁is", "▁at", "▁its", "▁berth", "▁and", "▁waits", "▁for", "▁a", "▁slot", "."]


def main(path: str) -> None:
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{b:02X}>".encode() for b in range(256)]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    tokens += [word.encode() for word in WORDS]
    types += [gguf.TokenType.NORMAL] * len(WORDS)
    scores = [0.0] * 259 + [-float(i) for i in range(len(WORDS))]

    writer = gguf.GGUFWriter(path + ".part", "llama")
    writer.add_name("berth tiny test model, random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDE // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    random = np.random.default_rng(8421)

    def weights(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.05).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDE, dtype=np.float32))

    weights("token_embd.weight", len(tokens), WIDE)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), WIDE)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        ones(f"{block}.ffn_norm.weight")
        for part in ("q", "k", "v", "output"):
            weights(f"{block}.attn_{part}.weight", WIDE, WIDE)
        weights(f"{block}.ffn_gate.weight", INNER, WIDE)
        weights(f"{block}.ffn_up.weight", INNER, WIDE)
        weights(f"{block}.ffn_down.weight", WIDE, INNER)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".part", path)


def adapter(path: str) -> None:
    """As convert_lora_to_gguf.py of llama.cpp writes them: A is rank x in, B out x rank."""
    writer = gguf.GGUFWriter(path + ".part", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 64.0)
    random = np.random.default_rng(1)
    for layer in range(LAYERS):
        for part in ("q", "v", "output"):
            name = f"blk.{layer}.attn_{part}.weight"
            for end, shape in (("lora_a", (RANK, WIDE)), ("lora_b", (WIDE, RANK))):
                writer.add_tensor(f"{name}.{end}", (random.standard_normal(shape) * 0.3).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".part", path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tiny_gguf.py FILE")
    adapter(os.path.join(os.path.dirname(sys.argv[1]), "adapter.gguf"))
    main(sys.argv[1])
