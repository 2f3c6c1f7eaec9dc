"""A language model of half a megabyte with random weights, as a GGUF file for llama.cpp.

It speaks nonsense, but through the whole of the real engine: tokenizer, template, cache, sampler.
"""

from pathlib import Path
from typing import Final

HEADS: Final = 4
CONTEXT: Final = 4096
TEMPLATE: Final = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and kinds of a SentencePiece model: 3 of control, 256 bytes, words."""
    words = [*_LETTERS, *(f"▁{letter}" for letter in _LETTERS), "▁", "the", "▁the", "he", "th"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * 259 + [-float(len(words) - at) for at in range(len(words))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(words)
    return tokens, scores, kinds


def write_tiny_model(path: Path, *, seed: int = 0, embedding: int = 64, layers: int = 2) -> Path:
    """Writes the model; the same seed makes the same file. A wider one takes longer a step."""
    import gguf
    import numpy as np

    tokens, scores, kinds = vocabulary()
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * embedding)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embedding // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(value=True)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    matrix("token_embd.weight", len(tokens), embedding)
    matrix("output.weight", len(tokens), embedding)
    writer.add_tensor("output_norm.weight", np.ones(embedding, dtype=np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", embedding, embedding)
        for name in ("ffn_gate", "ffn_up"):
            matrix(f"blk.{layer}.{name}.weight", 2 * embedding, embedding)
        matrix(f"blk.{layer}.ffn_down.weight", embedding, 2 * embedding)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(embedding, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
