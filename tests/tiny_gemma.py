"""A Gemma 3 of a few hundred weights with a vocabulary of a few dozen pieces, and the bytes of its GGUF file."""

import struct

import numpy as np

from ppl_models.in_context.language.gemma import Gemma, GemmaShape
from ppl_models.in_context.language.tokens import BYTE, CONTROL, DEFINED, PLAIN, Vocabulary

WORDS = [
    *"0123456789",
    ",",
    "-",
    ".",
    "\n",
    ",-",
    "yes",
    "no",
    "▁",
    "a",
    "b",
    "ab",
    "▁a",
    "▁ab",
    "y",
    "e",
    "s",
    "n",
    "o",
]
PIECES = ["<pad>", "<bos>", *WORDS, "ye", *(f"<0x{i:02X}>" for i in (0xC3, 0xA9))]
KINDS = [CONTROL, CONTROL, *(DEFINED if w == "\n" else PLAIN for w in WORDS), PLAIN, BYTE, BYTE]
SCORES = [-1000.0, -1000.0, *(-float(i) for i in range(len(WORDS))), -2.0, 0.0, 0.0]
SHAPE = GemmaShape(
    layers=4, width=12, heads=2, head=8, hidden=16, vocabulary=len(PIECES), window=5, period=2, longest=400
)


def weights(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0.0, 0.4, size) + ("norm" in name)).astype(np.float32)
        for name, size in shape.tensors().items()
    }


def vocabulary():
    return Vocabulary(PIECES, SCORES, KINDS, 1)


def net(seed=0):
    return Gemma(SHAPE, weights(seed=seed))


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(name, value):
    """One field: a text, an int (u32), a float (f32), or a list of texts, floats or ints."""

    def kind(v):
        return 8 if isinstance(v, str) else 6 if isinstance(v, float) else 4

    def one(v):
        return text(v) if isinstance(v, str) else struct.pack("<f" if isinstance(v, float) else "<I", v)

    if isinstance(value, list):
        listed = struct.pack("<IQ", kind(value[0]), len(value)) + b"".join(map(one, value))
        return text(name) + struct.pack("<I", 9) + listed
    return text(name) + struct.pack("<I", kind(value)) + one(value)


FIELDS = {
    "general.architecture": "gemma3", "gemma3.block_count": SHAPE.layers, "gemma3.embedding_length": SHAPE.width,
    "gemma3.attention.head_count": SHAPE.heads, "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": SHAPE.head, "gemma3.attention.value_length": SHAPE.head,
    "gemma3.feed_forward_length": SHAPE.hidden, "gemma3.attention.sliding_window": SHAPE.window,
    "gemma3.rope.freq_base": 1e6, "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
    "gemma3.context_length": SHAPE.longest, "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": SCORES, "tokenizer.ggml.token_type": KINDS, "tokenizer.ggml.bos_token_id": 1,
}  # fmt: skip


def gguf(fields=None, tensors=None, align=32):
    """The bytes of a file; ``tensors`` float32 by name, (out, in)."""
    fields = FIELDS if fields is None else fields
    tensors = weights() if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(field(name, value) for name, value in fields.items())
    data = b""
    for name, value in tensors.items():
        dims = value.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", 0, len(data))
        data += value.astype("<f4").tobytes()
        data += bytes(-len(data) % align)
    return head + bytes(-len(head) % align) + data
