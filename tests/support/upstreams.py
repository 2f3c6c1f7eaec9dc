"""What stands behind the proxy in tests: a real engine on a tiny random model, or a raw socket.

The socket answers whatever a test writes, so that it can do what no engine should.
"""

import json
import multiprocessing
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

SLOTS: Final = 4
_WORDS: Final = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "was",
    "on",
    "with",
    "as",
)


def write_model(path: Path) -> None:
    """Writes a Llama of two layers with random weights and a byte-level vocabulary."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)
    width, inner, layers, heads = 32, 64, 2, 4
    tokens = [b"<unk>", b"<s>", b"</s>"]
    tokens += [f"<0x{byte:02X}>".encode() for byte in range(256)]
    tokens += [f"\u2581{word}".encode() for word in _WORDS]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(at) for at in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(_WORDS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.5).astype(np.float32))

    tensor("token_embd.weight", len(tokens), width)
    tensor("output.weight", len(tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", width, width)
        tensor(f"blk.{layer}.ffn_gate.weight", inner, width)
        tensor(f"blk.{layer}.ffn_up.weight", inner, width)
        tensor(f"blk.{layer}.ffn_down.weight", width, inner)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _serve(model: str, pipe: Any) -> None:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = model
    params.n_ctx = 2048 * SLOTS
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = 1
    params.endpoint_slots = True
    server = Server(params)
    pipe.send(server.listening_address)
    with suppress(EOFError):
        pipe.recv()


@contextmanager
def engine(model: Path) -> Iterator[str]:
    """Runs llama.cpp's server on a model in a process of its own; yields its address."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(str(model), other), daemon=True)
    process.start()
    other.close()
    if not pipe.poll(30):
        process.kill()
        raise TimeoutError("the engine did not start within 30 s")
    try:
        yield pipe.recv()
    finally:
        pipe.close()
        process.join(2)
        process.kill()


class RawUpstream:
    """Accepts connections and has each request answered by a function that writes what it likes.

    Args:
        answer: Gets the connection and the request's head and body.
        tls: What makes its connections secure; None: nothing does.
    """

    def __init__(
        self,
        answer: Callable[[socket.socket, str, bytes], None],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        host = "http://127.0.0.1" if tls is None else "https://localhost"
        self.url = f"{host}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            connection = accepted
            if self._tls is not None:
                connection = self._tls.wrap_socket(accepted, server_side=True)
            data = b""
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            text = head.decode("latin-1")
            lengths = [line for line in text.split("\r\n") if line.lower().startswith("content-le")]
            length = int(lengths[0].split(":")[1]) if lengths else 0
            while len(body) < length:
                body += connection.recv(65536)
            self.requests.append((text, body))
            self._answer(connection, text, body)
            if isinstance(connection, ssl.SSLSocket):
                connection.unwrap().close()


def respond(connection: socket.socket, body: object, status: str = "200 OK") -> None:
    """Answers with JSON."""
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    connection.sendall(head.encode() + b"connection: close\r\n\r\n" + data)


def begin_stream(connection: socket.socket) -> None:
    """Sends the head of a stream that ends with its connection."""
    connection.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    )


def chunk(text: str | None = None, **members: Any) -> bytes:
    """An event of chat completions."""
    finish = members.pop("finish", None)
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**event, "choices": choices, **members}).encode() + b"\n\n"


def wait(connection: socket.socket) -> None:
    """Says nothing until the other end closes."""
    connection.recv(1)


def usage(prompt: int, completion: int) -> dict[str, int]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
