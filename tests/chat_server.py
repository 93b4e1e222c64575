"""A chat server on loopback that does as it is told, however bad, or answers through a local pipeline."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image

from emo_r3.inference.pipeline import EmoR3Pipeline
from emo_r3.models.prefix_cache import render_prompt

Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Notes each request; the server's `script` answers the first ones, its `usual` all others."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
            answer = self.server.script.pop(0) if self.server.script else self.server.usual
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try:
            answer(self, body)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def do_GET(self) -> None:
        self.server.listings.append({"path": self.path, "headers": dict(self.headers)})
        self.send(200, json.dumps({"object": "list", "data": [{"id": name} for name in self.server.models]}))

    def send(self, status: int, text: str, **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class ChatServer(ThreadingHTTPServer):
    """Serves from a thread while it is open.

    Args:
        usual (`Callable`): answers a request that the script has nothing for.
    """

    daemon_threads = True

    def __init__(self, usual: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.usual = usual
        self.script: list[Answer] = []
        self.models = ["miniature"]
        self.requests: list[dict[str, Any]] = []
        self.listings: list[dict[str, Any]] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.busy = self.most_busy = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what some tests are about."""


def completion(text: str | None, finish: str = "stop", logprobs: Any = None, **message: Any) -> str:
    """A chat completion as servers send it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def says(text: str | None, **more: Any) -> Answer:
    return lambda handler, body: handler.send(200, completion(text, **more))


def fails(status: int, text: str = '{"error": {"message": "no"}}', **headers: str) -> Answer:
    return lambda handler, body: handler.send(status, text, **headers)


def stalls(handler: Handler, body: dict[str, Any]) -> None:
    """Takes the request and says nothing."""
    handler.server.closing.wait(30)


def drips(handler: Handler, body: dict[str, Any]) -> None:
    """A byte now and then, so that no read waits long and the whole never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def truncates(handler: Handler, body: dict[str, Any]) -> None:
    """Announces more than it sends, and hangs up."""
    text = completion("\\boxed{awe}").encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text[: len(text) // 2])
    handler.close_connection = True


def hangs_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def answers_through(pipe: EmoR3Pipeline) -> Answer:
    """What the pipeline's model writes greedily, with the log-probabilities of vLLM's form."""
    lock = threading.Lock()  # one tokenizer, many threads

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        image, text = body["messages"][0]["content"]
        head, _, data = image["image_url"]["url"].partition(",")
        assert (head, image["type"], text["type"]) == ("data:image/png;base64", "image_url", "text")
        with lock, Image.open(io.BytesIO(base64.b64decode(data))) as image, torch.no_grad():
            prompt = render_prompt(pipe.processor, text["text"], with_image=True)
            inputs = pipe.processor(text=[prompt], images=[[image]], return_tensors="pt")
            output = pipe.model.generate(
                **inputs,
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            decode = pipe.processor.tokenizer.decode
            entries = []
            for token, scores in zip(ids, output.scores, strict=True):
                top = scores[0].log_softmax(-1).topk(body["top_logprobs"])
                others = [
                    {"token": decode([other]), "logprob": odds}
                    for odds, other in zip(top.values.tolist(), top.indices.tolist(), strict=True)
                ]
                entries.append({**others[0], "token": decode([token]), "top_logprobs": others})
            finish = "length" if len(ids) >= body["max_tokens"] else "stop"
            written = decode(ids, skip_special_tokens=True)
        handler.send(200, completion(written, finish, entries))

    return answer
