"""Servers that are slow, or lie: a request ends in time, and nothing wrong is taken for an answer."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from ppl_models.in_context.language import Endpoint, EndpointError, LanguageModel


@contextlib.contextmanager
def raw_server(send):
    """A server that calls ``send(connection)`` for each request, whatever it asks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection):
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                send(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def drip(connection, text):
    connection.sendall(text)
    for _ in range(400):
        connection.sendall(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 100000\r\n\r\n",
    ],
    ids=["body", "header", "refusal"],
)
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_a_request(text):
    with raw_server(lambda connection: drip(connection, text)) as url:
        began = time.monotonic()
        with pytest.raises(EndpointError, match="no whole answer in time|refuses the request"):
            Endpoint(url, "m", timeout=0.5, retries=0).complete({})
        assert time.monotonic() - began < 15  # 20 s and more were it not ended


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"[" * 50_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "no JSON object"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_answers_that_are_no_object_are_said(raw, says):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    with raw_server(lambda connection: connection.sendall(head + raw)) as url:
        with pytest.raises(EndpointError, match=says):
            Endpoint(url, "m", timeout=20.0, retries=0).complete({})


BOTH = {"1": -0.1, "0": float(np.log(1 - np.exp(-0.1)))}


def choice(index=0, token="1", value=-0.1, top=None):
    held = {"tokens": [token], "token_logprobs": [value], "top_logprobs": [BOTH if top is None else top]}
    return {"index": index, "text": "1,", "logprobs": held}


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ([choice(0), choice(0)], "not one for each prompt"),
        ([choice(0), choice(2)], "not one for each prompt"),
        ([choice(0), choice("1")], "not one for each prompt"),
        ([choice(0), choice(1, token=3)], "tokens are no texts"),
        ([choice(0), choice(1, value="high")], "values are no numbers"),
        ([choice(0), choice(1, top=["1"])], "no object of token and number"),
        ([choice(0), choice(1, top={"1": True})], "no object of token and number"),
        ([choice(0), choice(1, top={"1": float("nan")})], "expected at most 1"),
    ],
)
def test_answers_that_lie_are_refused(choices, says, monkeypatch):
    monkeypatch.setattr(Endpoint, "complete", lambda self, body: {"choices": choices})
    with pytest.raises(EndpointError, match=says):
        LanguageModel(Endpoint("http://127.0.0.1:9/v1", "m")).score([np.array([0]), np.array([1])])


def test_scores_come_back_in_the_order_of_their_indexes(monkeypatch):
    both = [{"0": float(np.log(1 - p)), "1": float(np.log(p))} for p in (0.2, 0.7)]
    choices = [choice(1, top=both[1]), choice(0, top=both[0])]
    monkeypatch.setattr(Endpoint, "complete", lambda self, body: {"choices": choices})
    found = LanguageModel(Endpoint("http://127.0.0.1:9/v1", "m")).score([np.array([0]), np.array([1])])
    np.testing.assert_allclose(found[:, 0], [0.2, 0.7], rtol=1e-6)


def test_a_torn_answer_of_the_cache_is_asked_for_again(tmp_path, monkeypatch):
    top = {"0": float(np.log(0.4)), "1": float(np.log(0.6))}
    asked = []
    monkeypatch.setattr(Endpoint, "complete", lambda self, body: asked.append(1) or {"choices": [choice(0, top=top)]})
    model = LanguageModel(Endpoint("http://127.0.0.1:9/v1", "m"), cache=tmp_path)
    for text in (None, "{", "[]", '{"choices": []}'):
        for file in tmp_path.glob("*.json"):
            file.write_text(text)
        np.testing.assert_allclose(model.score([np.array([0])]), [[0.6]], rtol=1e-6)
    assert len(asked) == 4
