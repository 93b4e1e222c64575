"""The REST API of `emo-r3 serve`: a pipeline over HTTP, documented by OpenAPI."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from .. import __version__
from ..errors import EmoR3Error
from ..results import EmotionResult
from .bounded import BoundedPipeline, TimeLimitError
from .limits import MAX_BODY, MAX_FILE, MAX_IMAGES, BodyLimit, web_words

try:
    import python_multipart  # noqa: F401  # in which images come
    from fastapi import Depends, FastAPI, File, Form, Request, Security, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.security import HTTPBearer
    from starlette.exceptions import HTTPException
except ImportError as _error:
    raise EmoR3Error("to serve a model needs FastAPI: pip install 'emo-r3[serve]'") from _error

if TYPE_CHECKING:
    from ..inference.pipeline import EmoR3Pipeline

MAX_WAITING = 32
"""Calls that wait for the model, the one at work included."""
MAX_CANDIDATES = 16
OPTIONS = ("labels", "reflect", "num_candidates", "aggregate")
"""What both predictions take beside images."""

Labels = Annotated[
    str | None,
    Form(description="Name of a label list (emoset, emotion6, webemo ...), or labels with commas between them."),
]
Reflect = Annotated[bool, Form(description="Ask the model also whether its text fits the image and itself.")]
Candidates = Annotated[int, Form(ge=1, le=MAX_CANDIDATES, description="Answers to sample and make one of.")]
Aggregate = Annotated[
    Literal["best", "self-consistency"],
    Form(description="The best of several answers, or what they say together."),
]

_ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong."},
    413: {"description": "The request or an image is too large."},
    422: {"description": "The image can't be read, or an option can't be used."},
    429: {"description": "This address has sent too much."},
    507: {"description": "Too many images are coming at one time."},
    503: {"description": "Too many calls are waiting, or this one took too long."},
}


def create_api(pipeline: EmoR3Pipeline, token: str | None = None) -> FastAPI:
    """Makes the application: `POST /predict`, `POST /predict-many`, `GET /health`, and its documentation at `/docs`.

    Args:
        pipeline (`EmoR3Pipeline`): the model that answers, one call at a time.
        token (`str`, *optional*): what callers have to send as `Authorization: Bearer ...`; all may call unless given.

    Raises:
        EmoR3Error: FastAPI is not installed.
    """
    bounded = BoundedPipeline(pipeline)
    room = threading.BoundedSemaphore(MAX_WAITING)
    app = FastAPI(
        title="EMO-R3",
        summary="The emotion that an image evokes in those who look at it, with the reasons.",
        version=__version__,
        # The token is checked before a body is read; this tells the documentation of it.
        dependencies=[Security(HTTPBearer(auto_error=False))] if token else [],
    )
    # Whoever has the token is trusted, and behind a proxy all have one address.
    app.add_middleware(BodyLimit, limit=MAX_BODY, quota=not token, as_json=True)
    if token:
        app.add_middleware(_TokenCheck, token=token)

    @app.exception_handler(EmoR3Error)
    def refuse(request: Request, error: EmoR3Error) -> JSONResponse:
        code = 503 if isinstance(error, TimeLimitError) else 413 if isinstance(error, _TooLargeError) else 422
        return JSONResponse({"error": web_words(str(error))}, code)

    @app.exception_handler(RequestValidationError)
    def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _told(error)}, 422)

    @app.exception_handler(HTTPException)
    def refuse_path(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(_Full)
    def wait(request: Request, error: _Full) -> JSONResponse:
        words = {"error": f"{MAX_WAITING} calls are waiting for the model: try again later"}
        return JSONResponse(words, 503, {"Retry-After": "30"})

    @contextmanager
    def place() -> Iterator[None]:
        if not room.acquire(blocking=False):
            raise _Full
        try:
            yield
        finally:
            room.release()

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server is there, and what it answers with."""
        labels = list(pipeline.info.label_set.labels)
        facts = {"model": bounded.name, "method": bounded.method, "labels": labels}
        return {"status": "ok", "version": __version__} | facts

    @app.post("/predict", responses=_ANSWERS, dependencies=[Depends(_only("image"))])
    def predict(
        image: UploadFile,
        labels: Labels = None,
        reflect: Reflect = False,
        num_candidates: Candidates = 1,
        aggregate: Aggregate = "best",
    ) -> dict[str, Any]:
        """Reads the emotion of one image: label, confidence, probabilities, steps, valence and arousal."""
        options = {"labels": labels, "reflect": reflect, "num_candidates": num_candidates, "aggregate": aggregate}
        with place():
            [result] = bounded.results([_source(image)], **options)
        if result.error:
            raise EmoR3Error(result.error)
        return result.to_dict()

    @app.post("/predict-many", responses=_ANSWERS, dependencies=[Depends(_only("images"))])
    def predict_many(
        images: Annotated[list[UploadFile], File(max_length=MAX_IMAGES)],
        labels: Labels = None,
        reflect: Reflect = False,
        num_candidates: Candidates = 1,
        aggregate: Aggregate = "best",
    ) -> dict[str, list[dict[str, Any]]]:
        """Reads the emotions of several images, in order; one that can't be read has its reason under `error`."""
        options = {"labels": labels, "reflect": reflect, "num_candidates": num_candidates, "aggregate": aggregate}
        with place():
            results: list[EmotionResult] = list(bounded.results([_source(image) for image in images], **options))
        return {"results": [result.to_dict() for result in results]}

    return app


class _Full(Exception):
    """As many calls are waiting as may."""


class _TooLargeError(EmoR3Error):
    """An image has more bytes than one may have."""


def _only(images: str) -> Callable[[Request], Awaitable[None]]:
    """A check that nothing is sent which nobody would read, such as an option with another name."""
    known = (images, *OPTIONS)

    async def check(request: Request) -> None:
        form = await request.form()
        if unknown := next((name for name in form if name not in known), None):
            raise EmoR3Error(f"there is no field {unknown[:60]!r}: the form has {', '.join(known)}")
        if twice := next((name for name in form if name != "images" and len(form.getlist(name)) > 1), None):
            advice = ": send several to /predict-many" if twice == "image" else ""
            raise EmoR3Error(f"the field {twice} is there twice{advice}")
        if request.query_params:
            raise EmoR3Error("an option is in the address: send it as a field of the form")

    return check


def _told(error: RequestValidationError) -> str:
    """The first thing that is wrong with the fields, in a line; nothing of what was sent is in it."""
    first = error.errors()[0]
    name = str(next((part for part in reversed(first["loc"]) if isinstance(part, str) and part != "body"), "form"))
    if first["type"] == "missing":
        return f"the field {name} is missing: send it in a form (multipart/form-data)"
    if first["type"] == "too_long":
        return f"{name}: at most {MAX_IMAGES} in one call"
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}"


class _TokenCheck:
    """ASGI middleware that refuses a request without the token, before its body is read. `/health` is for all.

    Args:
        app: the application behind it.
        token (`str`): the token.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app, self.expected = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers 401 instead of the application."""
        app = self.app
        if scope["type"] == "http" and scope["path"] not in ("/health", "/docs", "/openapi.json"):
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self.expected):
                words = {"error": "send the server's token: Authorization: Bearer ..."}
                app = JSONResponse(words, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


def _source(image: UploadFile) -> dict[str, Any]:
    """What the pipeline reads of an upload: its bytes, and its name without folders."""
    data = image.file.read(MAX_FILE + 1)
    name = PurePath((image.filename or "image").replace("\\", "/")).name or "image"
    if len(data) > MAX_FILE:
        raise _TooLargeError(f"{name}: the image exceeds {MAX_FILE // 2**20} MB: send a smaller one")
    return {"bytes": data, "path": name}
