"""A completions endpoint on this machine whose language model is a known predictor, and which can fail on demand."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from inference.coherence import InProcess


class Model:
    """A rule that writes symbols in a format, with the log-probabilities of its words."""

    def __init__(self, rule, form):
        self.host, self.form = InProcess(rule), form

    def symbols(self, prompt):
        text = prompt.removeprefix(self.form.preface)
        pieces = [piece for piece in text.split(self.form.separator) if piece]
        if not self.form.words:
            return np.array([float(piece) for piece in pieces])
        digits = [self.form.words.index(word) for piece in pieces for word in piece.split(self.form.inner)]
        return self.form.symbols(digits)

    def full(self, p):
        return np.concatenate([1 - p, p], -1) if p.shape[-1] == 1 else p

    def tokens(self, z, p):
        """Tokens of a path and, of each, the probabilities of all words there (None at separators)."""
        form, K = self.form, len(self.form.words)
        for symbol, row in zip(z.tolist(), p, strict=True):
            if form.slots == 1:
                yield form.words[symbol], row
            else:
                pairs = row.reshape(K, K)
                yield form.words[symbol // K], pairs.sum(1)
                yield form.inner, None
                yield form.words[symbol % K], pairs[symbol // K] / pairs[symbol // K].sum()
            yield form.separator, None

    def choice(self, index, z, p, logprobs):
        pairs = list(self.tokens(z, self.full(p)))
        found = {"index": index, "text": "".join(token for token, _ in pairs), "finish_reason": "length"}
        if logprobs:
            tops = [
                {token: 0.0} if row is None else dict(zip(self.form.words, np.log(row).tolist(), strict=True))
                for token, row in pairs
            ]
            held = {"tokens": [token for token, _ in pairs], "top_logprobs": tops}
            held["token_logprobs"] = [top[token] for token, top in zip(held["tokens"], tops, strict=True)]
            found["logprobs"] = held
        return found

    def answer(self, body):
        logprobs = body.get("logprobs")
        if isinstance(body["prompt"], list):
            p = self.host.score([self.symbols(prompt) for prompt in body["prompt"]])
            return [self.choice(i, np.zeros(1, int), row[None], logprobs) for i, row in enumerate(p)]
        context, steps = self.symbols(body["prompt"]), body["max_tokens"] // self.form.tokens - 1
        drawn = self.host.paths(context, steps, body["n"], body["seed"])
        if not self.form.words:
            texts = ["".join(f"{v:.1f}," for v in [*row, 0.0]) for row in drawn.z]
            return [{"index": i, "text": text, "logprobs": None} for i, text in enumerate(texts)]
        # The rule draws as many as in process; one more, the likeliest, shows what it says after them.
        z = np.concatenate([drawn.z, self.full(drawn.p[:, -1]).argmax(-1)[:, None]], 1)
        return [self.choice(i, z[i], drawn.p[i], logprobs) for i in range(body["n"])]


def spoil(choices, fault):
    """Faults of the content."""
    held = [choice.get("logprobs") for choice in choices]
    if fault == "no_logprobs":
        for choice in choices:
            choice["logprobs"] = None
    elif fault == "sum":
        for part in held:
            part["top_logprobs"] = [
                {token: value + 0.4 for token, value in top.items()} for top in part["top_logprobs"]
            ]
    elif fault == "absent":
        for part in held:
            part["top_logprobs"] = [{token: part["token_logprobs"][i]} for i, token in enumerate(part["tokens"])]
    elif fault == "spaces":
        for part in held:
            part["tokens"] = [" " + token if token in "01" else token for token in part["tokens"]]
            part["top_logprobs"] = [
                {" " + t if t in "01" else t: v for t, v in top.items()} for top in part["top_logprobs"]
            ]
    elif fault == "short":
        for name in held[0]:
            held[0][name] = held[0][name][:3]
        choices[0]["text"] = choices[0]["text"][:3]
    elif fault == "illegal":
        held[0]["tokens"][2] = "7"
        choices[0]["text"] = "0,7,1,"
    return choices


@contextlib.contextmanager
def serving(rule, form, faults=(), echo=""):
    """Serve a rule; each request takes the next fault from the list.  Yields (url, requests, headers)."""
    model, faults, requests, headers = Model(rule, form), list(faults), [], []
    lock, closing = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send(self, code, raw, extra=()):
            self.send_response(code)
            for name, value in (("Content-Length", str(len(raw))), *extra):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append(body)
                headers.append(dict(self.headers))
                fault = faults.pop(0) if faults else None
                choices = model.answer(body)
            if fault == "timeout":
                closing.wait(20.0)
            elif isinstance(fault, int):
                message = json.dumps({"error": {"message": f"no, {echo}{self.headers.get('Authorization')}"}}).encode()
                place = [("Location", "http://127.0.0.1:1/v1")] if 300 <= fault < 400 else []
                self.send(fault, message, [("Retry-After", "0"), *place])
                return
            raw = json.dumps({"choices": spoil(choices, fault)}).encode()
            if fault == "malformed":
                raw = raw[: len(raw) // 2]
            if fault == "empty":
                raw = b'{"object": "nothing"}'
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2])
                self.close_connection = True
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send(200, raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests, headers
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
