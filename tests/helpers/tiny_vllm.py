"""A real HTTP server on loopback with vLLM's routes over a tiny model and peft adapters; it can misbehave."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class TinyVLLM:
    """Use it as a context manager; it listens on a port of its own.

    Args:
        folder: Of the base model, with its tokenizer.
        faults: What it does wrong, by name; the set may be changed at any time:
            "ignores adapters", "stuck" (at the first adapter), "raw" (log-probs), "hot" (samples at twice the
            temperature), "no ids", "cuts" (prompts), "no route", "no lora", "blind" (finds no folder), "no models",
            "broken" (each completion ends in HTTP 500).

    Attributes:
        adapters: Name -> the model with it, of those that are loaded.
        loaded: Names of all that were ever loaded, in order.
        calls: Bodies of all completion requests.
        rank: Of adapters at most.
        positions: Of sequences at most.
    """

    def __init__(self, folder: Path, *faults: str) -> None:
        self.folder, self.faults = folder, set(faults)
        self.base: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.adapters: dict[str, Any] = {}
        self.roots: dict[str, str] = {}
        self.loaded: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.rank, self.positions = 16, 1024
        self._last_call = 0  # number of the completion request at which it dies; 0: it does not
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> TinyVLLM:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.kill()

    def start(self) -> None:
        """Listen, after `kill` at the same port as before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*owner.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock, torch.no_grad():
                    self.answer(*owner.post(self.path, body))

            def answer(self, status: int, found: Any) -> None:
                if self.server is not owner._server:
                    return  # it was killed meanwhile
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()  # seconds to its end

    def kill(self) -> None:
        """Die: calls under way get no answer, new ones no connection, and the adapters are gone."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.adapters.clear()
        self.roots.clear()

    def kill_at(self, number: int) -> None:
        """Die at the completion request of this number from now, before it is answered."""
        self._last_call = len(self.calls) + number

    def get(self, path: str) -> tuple[int, Any]:
        if path != "/v1/models" or "no models" in self.faults:
            return 404, {"detail": "Not Found"}
        base = {"id": "tiny", "root": str(self.folder), "parent": None, "max_model_len": self.positions}
        return 200, {"data": [base, *({"id": n, "root": self.roots[n], "parent": "tiny"} for n in self.adapters)]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/v1/completions":
            return self.complete(body)
        if path == "/v1/load_lora_adapter" and "no route" not in self.faults:
            return self.load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter" and "no route" not in self.faults:
            there = self.adapters.pop(body["lora_name"], None) is not None
            return (200, "Success") if there else error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 404, {"detail": "Not Found"}

    def load(self, name: str, path: str) -> tuple[int, Any]:
        if "no lora" in self.faults:
            return error(500, "Worker failed with error 'LoRA is not enabled. Use --enable-lora to enable LoRA.'")
        if "blind" in self.faults or not Path(path, "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(Path(path, "adapter_config.json").read_text())["r"]
        if rank > self.rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.rank}.")
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(self.base), path).eval()
        if "ignores adapters" in self.faults:
            model = self.base
        if "stuck" in self.faults and self.adapters:
            model = next(iter(self.adapters.values()))
        self.adapters[name], self.roots[name] = model, path
        self.loaded.append(name)
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.calls.append(body)
        if len(self.calls) == self._last_call:
            self.kill()
            return error(500, "never sent")
        if "broken" in self.faults:
            return error(500, "EngineCore encountered an issue.")
        if body["model"] not in ("tiny", *self.adapters):
            return error(404, f"The model `{body['model']}` does not exist.")
        model = self.adapters.get(body["model"], self.base)
        prompt = body["prompt"][-8:] if "cuts" in self.faults else body["prompt"]
        ids, logprobs = list(prompt), []
        generator = torch.Generator().manual_seed(body["seed"])
        reason = "length"
        while len(logprobs) < body["max_tokens"] and reason == "length":
            logits = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
            scaled = logits / (body["temperature"] or 1.0) / (2 if "hot" in self.faults else 1)
            if body["top_k"]:
                scaled = scaled.masked_fill(scaled < scaled.topk(body["top_k"]).values[-1], -torch.inf)
            drawn = torch.multinomial(scaled.softmax(-1), 1, generator=generator)
            token = int(drawn if body["temperature"] else logits.argmax())
            ids.append(token)
            logprobs.append(float((logits if "raw" in self.faults else scaled).log_softmax(-1)[token]))
            said = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
            ended = token == self.tokenizer.eos_token_id and not body["ignore_eos"]
            if ended or token in body["stop_token_ids"] or any(stop in said for stop in body["stop"]):
                reason = "stop"
        choice: dict[str, Any] = {"logprobs": {"token_logprobs": logprobs}, "finish_reason": reason, "text": said}
        if "no ids" not in self.faults:
            choice |= {"token_ids": ids[len(prompt) :], "prompt_token_ids": prompt}
        if "prompt_logprobs" in body:
            table = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
            values = [{str(t): {"logprob": float(table[i, t])}} for i, t in enumerate(prompt[1:])]
            choice["prompt_logprobs"] = [None, *values]
        return 200, {"choices": [choice]}


def error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "Error", "code": status}}
