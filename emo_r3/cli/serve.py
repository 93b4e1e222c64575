"""`emo-r3 serve`: a REST API."""

from __future__ import annotations

import argparse
import os
import sys

from ..errors import EmoR3Error
from ..serving.limits import check_address
from .common import check_device, quiet_libraries

TOKEN = "EMO_R3_SERVER_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 serve`."""
    parser.add_argument("--model", metavar="PATH|REPO", help="folder or Hub repository (default: the miniature)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")
    parser.add_argument("--device-map", "--device", metavar="DEVICE", help="cpu, cuda:0, auto, ...")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument("--load-in", choices=("4bit", "8bit"), help="weights of fewer bits: emo-r3[quantized]")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="rows in one forward (default: 4)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.epilog = f"The variable {TOKEN} holds the token that callers have to send; without it, all may call."


def run(args: argparse.Namespace) -> int:
    """Serve a REST API until Ctrl-C: POST /predict, POST /predict-many, GET /health; its documentation is at /docs."""
    quiet_libraries()
    check_address(args.host, args.port)  # before the seconds that a model takes
    token = os.environ.get(TOKEN)
    if token is not None and len(token) < 16:
        raise EmoR3Error(f"{TOKEN} has {len(token)} characters: give 16 or more, such as of `openssl rand -hex 16`")
    from ..serving.api import create_api  # tells what to install

    check_device(args.device_map)
    import uvicorn

    from ..inference.pipeline import EmoR3Pipeline

    pipeline = EmoR3Pipeline.from_pretrained(
        args.model,
        revision=args.revision,
        device_map=args.device_map,
        dtype=args.dtype,
        load_in=args.load_in,
        batch_size=args.batch_size,
    )
    config = uvicorn.Config(
        create_api(pipeline, token),
        host=args.host,
        port=args.port,
        log_level="warning",
        server_header=False,
        limit_concurrency=256,
        timeout_graceful_shutdown=5,
    )
    who = "callers need the token" if token else "no token is asked for"
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"emo-r3: http://{host}:{args.port} ({who}; /docs tells of it; Ctrl-C ends it)", file=sys.stderr, flush=True)
    uvicorn.Server(config).run()
    return 0
