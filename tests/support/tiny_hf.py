"""A folder as Hugging Face has them, of a Llama with random weights that an engine makes up itself.

Its tokenizer knows single bytes, so that a text of n bytes has n tokens.
"""

import json
from pathlib import Path
from typing import Final

CONTEXT: Final = 4096
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
_SPECIAL: Final = (UNKNOWN, BOS, EOS)
_TEMPLATE: Final = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_HEADS: Final = 2
_HEAD_DIM: Final = 64  # the least for which vLLM has an attention kernel on CPUs


def write_tiny_hf(folder: Path) -> Path:
    """Writes configuration and tokenizer; load it with weights made up (vLLM: `dummy`)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate([*_SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    said |= {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary),
        "hidden_size": _HEADS * _HEAD_DIM,
        "intermediate_size": 2 * _HEADS * _HEAD_DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "bos_token_id": vocabulary[BOS],
        "eos_token_id": vocabulary[EOS],
        "torch_dtype": "float32",
    }
    for name, value in (("config", config), ("tokenizer_config", said)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder
