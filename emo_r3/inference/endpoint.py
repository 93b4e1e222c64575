"""Answers from a server: the pipeline's call on any OpenAI-compatible chat server of an image-text model."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from httpx2 import URL, InvalidURL
from huggingface_hub import AsyncInferenceClient, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import EmoR3Error, ImageError
from ..hub_errors import http_client
from ..images.download import TEMPORARY, public_name, retry_seconds
from ..images.fitting import fit_image
from ..images.loading import LoadedImage, image_digest, load_image, source_name
from ..labels import LabelSet
from ..models.calibration import Calibrations, read_calibrations
from ..models.checkpoint import CheckpointInfo
from ..prompts import Prompts, load_prompts
from ..results import EmotionResult
from .answers import make_result
from .candidates import calibrated
from .endpoint_reply import Reply, label_shares, read_reply
from .engine import sampling_seed
from .options import CallOptions, OnError, positive
from .pipeline import one_or_many

HTTP = http_client()
TOKEN_VARIABLE = "EMO_R3_ENDPOINT_TOKEN"
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts at one answer, unless the server asks for more."""
TOP_TOKENS = 20  # the most that OpenAI's API and vLLM give
# These say that the address, the token or the model's name is wrong: no image will fare better.
_USELESS = frozenset({401, 402, 403, 404, 405})


class EndpointError(EmoR3Error):
    """A server that can't be used, or (with `on_error="raise"`) that gave no answer."""


class Unanswered(EmotionResult):
    """No answer to an image, because the server failed: it may answer another time."""


class Refused(Unanswered):
    """No answer to an image, because the server answered that it can't use this request."""


def check_for_server(options: Mapping[str, Any]) -> None:
    """Raises `EmoR3Error` for the first of a command's options that is given and needs the model itself."""
    for name, given in options.items():
        if given:
            raise EmoR3Error(f"{name} is for a model that is loaded here: leave it out, or --endpoint")


class _NoAnswer(EndpointError):
    """No answer for one image; others may have one."""

    def __init__(self, message: str, result: type[Unanswered] = Unanswered) -> None:
        super().__init__(message)
        self.result = result


class _Again(Exception):
    """An attempt that failed and may do better later, in words, and how many seconds the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


class EndpointPipeline:
    r"""The call of [`EmoR3Pipeline`] on a server: same images, same question, same reading of the answer.

    The server writes as it likes, which is the decoding `"free"`. It uses its own settings for what has no standard
    name; start vLLM with `--generation-config vllm`, or a checkpoint's repetition penalty changes its answers.

    Args:
        url (`str`): the server, with or without `/v1` and `/chat/completions`.
        model (`str`, *optional*): what the server calls the model; its only one unless given.
        prompts (`Prompts`, `str` or `Path`, *optional*): prompts, or a TOML file, instead of the model's own.
        calibration (`bool`, `str` or `Path`, *optional*, defaults to `True`): as
            [`EmoR3Pipeline.from_pretrained`] takes it.
        info (`CheckpointInfo`, *optional*): how the model wants to be asked; unless given, what `emo_r3.json` says if
            `model` is a folder here too, and else the package's defaults.
        token (`str`, *optional*): sent to the server and never shown; `$EMO_R3_ENDPOINT_TOKEN` unless given. The one
            that is logged in goes to huggingface.co alone.
        timeout (`float`, *optional*, defaults to 300.0): seconds for one image, all attempts and pauses included.
            One request gets half of it, so that one that hangs is made again.
        concurrency (`int`, *optional*, defaults to 8): requests under way at once.

    Raises:
        CheckpointError: the calibration can't be used.
        EndpointError: there is no such server, or it has no such model.
        PromptError: the prompt file can't be used.

    Example:

    ```python
    >>> pipe = EmoR3Pipeline.from_endpoint("http://localhost:8000/v1")
    >>> pipe("image.png").label
    ```
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        prompts: Prompts | str | os.PathLike[str] | None = None,
        calibration: str | os.PathLike[str] | bool = True,
        info: CheckpointInfo | None = None,
        token: str | None = None,
        timeout: float = 300.0,
        concurrency: int = 8,
    ) -> None:
        self.url = public_name(url)
        self._chat_url, models_url = _addresses(url)
        self._token = token or os.environ.get(TOKEN_VARIABLE) or _saved_token(url)
        if not (math.isfinite(timeout) and timeout > 0):
            raise EmoR3Error(f"timeout={timeout} must be a number of seconds above 0")
        self.timeout, self.concurrency = timeout, positive("concurrency", concurrency)
        if isinstance(prompts, (str, os.PathLike)):
            prompts = load_prompts(Path(prompts))
        scaling = calibration if isinstance(calibration, bool) else read_calibrations(calibration)
        self.name = self._only_model(models_url) if model is None else model
        info = CheckpointInfo.read(Path(self.name)) if info is None else info
        self.info = info.asked_with(prompts, scaling)
        self._with_log_probs = True
        self._calibrations = Calibrations(self.info.calibrations)

    def __call__(
        self,
        images: Any,
        *,
        labels: LabelSet | Sequence[str] | str | None = None,
        method: str | None = None,
        decoding: Literal["free"] = "free",
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        allow_private_hosts: bool = False,
        max_pixels: int | None = None,
        **others: Any,
    ) -> Any:
        """Reads the emotion of images.

        Args:
            images: as [`EmoR3Pipeline`] takes them.
            labels, method, max_new_tokens, temperature, seed, allow_private_hosts, max_pixels: as there.
            decoding (`str`, *optional*, defaults to `"free"`): nothing else: a server can't be made to keep a form.
            batch_size (`int`, *optional*): instead of the pipeline's `concurrency`.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a
                image that can't be read, or that the server has no answer to. A server that is not there, or that
                refuses the token or the model, is an error all the same.

        Returns:
            `EmotionResult`, `list[EmotionResult]` or `Iterator[EmotionResult]`: in the order of the images. Without
            log-probabilities from the server, `probabilities` is empty and a note says so.

        Raises:
            ImageError: an image can't be read.
            EndpointError: the server gives no answer.
            EmoR3Error: an option can't be used.
        """
        if decoding != "free":
            raise EmoR3Error(f"decoding={decoding!r} needs the model itself, not a server of it: use free")
        if others:
            raise EmoR3Error(f"{', '.join(others)}: not with a server; leave it out, or load the model itself")
        options = CallOptions.of(
            self.info,
            self.concurrency,
            labels=labels,
            method=method,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            on_error=on_error,
            allow_private_hosts=allow_private_hosts,
            max_pixels=max_pixels or self.info.max_pixels,
        )
        question = self.info.prompts.question(options.method, options.labels)
        return one_or_many(images, lambda many: self._run(many, question, options))

    def _run(self, images: Iterable[Any], question: str, options: CallOptions) -> Iterator[EmotionResult]:
        """Results in order. A slow image holds up the output, not the requests: those go on for a while."""
        waiting: deque[Any] = deque()
        # What the client is without a token would be the one that is logged in, which is not for any server.
        client = AsyncInferenceClient(base_url=self._chat_url, api_key=self._token or "EMPTY")
        turns = asyncio.Semaphore(options.batch_size)
        with _background_loop(client) as loop:
            for source in images:
                job = self._answer(client, turns, source, question, options)
                waiting.append(asyncio.run_coroutine_threadsafe(job, loop))
                while waiting and (waiting[0].done() or len(waiting) >= 4 * options.batch_size):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    async def _answer(
        self,
        client: AsyncInferenceClient,
        turns: asyncio.Semaphore,
        source: Any,
        question: str,
        options: CallOptions,
    ) -> EmotionResult:
        name = source_name(source)
        async with turns:
            try:
                loaded, data_url = await asyncio.to_thread(self._image, source, options)
                name = loaded.name
                reply = await self._persist(client, name, self._body(data_url, loaded, question, options))
            except (ImageError, _NoAnswer) as error:
                if options.on_error == "raise":
                    raise
                made = error.result if isinstance(error, _NoAnswer) else EmotionResult
                return made(image=name, error=str(error))
        probabilities, notes = label_shares(reply, options.labels.labels)
        if reply.cut:
            notes = (*notes, f"cut at max_new_tokens={options.max_new_tokens}")
        result = make_result(loaded, reply.text, probabilities, notes, options, self.info, self.name)
        return calibrated(result, self._calibrations.find(options.way))

    def _image(self, source: Any, options: CallOptions) -> tuple[LoadedImage, str]:
        """The image as the local pipeline gives it to a processor, and the same pixels as a data URL."""
        loaded = load_image(source, allow_private_hosts=options.allow_private_hosts)
        loaded = fit_image(loaded, self.info.square, options.max_pixels)
        png = io.BytesIO()
        loaded.image.save(png, "PNG", compress_level=1)
        return loaded, "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")

    def _body(self, data_url: str, loaded: LoadedImage, question: str, options: CallOptions) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": data_url}},
            {"type": "text", "text": question},
        ]
        if options.temperature is None:
            sampling: dict[str, Any] = {"temperature": 0.0}
        else:
            seed = sampling_seed(options.seed, image_digest(loaded.image), 0) % 2**31
            sampling = {"temperature": options.temperature, "top_p": 1.0, "seed": seed}
        return {
            "messages": [{"role": "user", "content": content}],
            "model": self.name,
            "max_tokens": options.max_new_tokens,
            "frequency_penalty": 0.0,  # `transformers serve` takes it for the repetition penalty, minus 1
            **sampling,
        }

    async def _persist(self, client: AsyncInferenceClient, name: str, body: dict[str, Any]) -> Reply:
        """Asks until there is an answer, attempts or time are used up, or asking again is no use."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.timeout
        attempts = 0
        while True:
            attempts += 1
            try:
                async with asyncio.timeout(min(self.timeout / 2, deadline - clock())):
                    return await self._ask(client, name, body)
            except TimeoutError:
                failure = _Again(f"no answer within {self.timeout / 2:g} s")
            except _Again as again:
                failure = again
            pause = max(PAUSES[min(attempts, len(PAUSES)) - 1], failure.wait)
            if attempts > len(PAUSES) or clock() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        what = f"{self.url}: {failure}, and no answer after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
        if failure.wait:
            what += f" (it asks to wait {failure.wait:g} s)"
        if failure.unreachable:
            raise EndpointError(f"{what}; start the server, or check the address")
        raise _NoAnswer(f"{name}: {what}; try again later, with fewer requests at once, or raise timeout")

    async def _ask(self, client: AsyncInferenceClient, name: str, body: dict[str, Any]) -> Reply:
        """One attempt, or two where the server turns out not to give log-probabilities."""
        asked = self._with_log_probs
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP_TOKENS} if asked else {}
        complete: Any = client.chat_completion
        try:
            return read_reply(await complete(**body, **extra))
        except HfHubHTTPError as error:
            status = error.response.status_code
            # Not the whole message: it shows the address with its query, where some servers want their key.
            said = self._without_token(_first_line(error.server_message or error.response.reason_phrase))
            if status in TEMPORARY or status >= 520:  # those are a proxy's
                wait = retry_seconds(error.response.headers.get("Retry-After"))
                raise _Again(f"it answered {status}", wait or 0.0) from None
            if asked and "logprob" in f"{error} {error.response.text}".lower():
                self._with_log_probs = False
                return await self._ask(client, name, body)
            if status in _USELESS:
                advice = f"check the address, the token (${TOKEN_VARIABLE}) and the model's name {self.name!r}"
                raise EndpointError(f"{self.url}: it answered {status} ({said}); {advice}") from None
            raise _NoAnswer(
                f"{name}: {self.url} answered {status} ({said}); check that the model takes images",
                Refused if status < 500 else Unanswered,
            ) from None
        except OfflineModeIsEnabled:
            raise EndpointError(f"{self.url}: nothing is sent while HF_HUB_OFFLINE is set; unset it") from None
        except HTTP.ConnectError as error:
            raise _Again(f"no connection ({_first_line(str(error))})", unreachable=True) from None
        except HTTP.HTTPError as error:
            raise _Again(f"the connection broke ({_first_line(str(error)) or type(error).__name__})") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # the last, of the client, on NaN
            raise _Again("its answer is no chat completion") from None

    def _only_model(self, models_url: str) -> str:
        """What the server calls its one model."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            response = get_session().get(models_url, headers=headers, timeout=min(self.timeout, 30.0))
            if response.status_code != HTTPStatus.OK:
                raise ValueError(f"it answered {response.status_code}")
            names = [str(model["id"]) for model in response.json()["data"]]
        except OfflineModeIsEnabled:
            raise EndpointError(f"{self.url}: nothing is sent while HF_HUB_OFFLINE is set; unset it") from None
        except (HTTP.HTTPError, ValueError, TypeError, LookupError) as error:
            reason = _first_line(str(error)) or type(error).__name__
            raise EndpointError(
                f"{self.url} doesn't list its models ({reason}); check the address, or name the model (asked is "
                "OpenAI's chat API, as vLLM has it; emo-r3 serve has none)"
            ) from None
        if len(names) != 1:
            listed = ": " + ", ".join(names[:8]) + (" .." if len(names) > 8 else "") if names else ""
            raise EndpointError(f"{self.url} lists {len(names)} models{listed}; name the one to ask")
        return names[0]

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


def _addresses(url: str) -> tuple[str, str]:
    """Where to chat, and where the models are listed."""
    try:
        parts = urlsplit(str(URL(url)))
    except (ValueError, InvalidURL):
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = public_name(url) if "://" in url else url
        raise EndpointError(f"{shown} is not the address of a server: give one as http://localhost:8000/v1")
    if "@" in parts.netloc:
        raise EndpointError(f"{public_name(url)}: the address holds a user name or password; give a token instead")
    path = parts.path.rstrip("/")
    root = path.removesuffix("/chat/completions")
    if root == path and not path.endswith("/v1"):
        root += "/v1"
    chat, models = (
        parts._replace(path=f"{root}/{name}", fragment="").geturl() for name in ("chat/completions", "models")
    )
    return chat, models


def _saved_token(url: str) -> str | None:
    """The token that is logged in, if it is for this server."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    own = parts.scheme == "https" and (host == "huggingface.co" or host.endswith(".huggingface.co"))
    return get_token() if own else None


def _first_line(text: str) -> str:
    """The first line, no longer than a person reads and without what could disturb a terminal."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(character if character.isprintable() else "?" for character in line)[:300]


@contextmanager
def _background_loop(client: AsyncInferenceClient) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on a thread of its own, as a notebook's thread has one already; what is unfinished at the end is
    dropped, and the client closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="emo-r3-endpoint", daemon=True)
    thread.start()

    async def finish() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.close()

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(finish(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
