"""`emo-r3 demo`: the demo in the browser."""

from __future__ import annotations

import argparse

from ..demo.app import create_demo, launch
from ..serving.limits import check_address
from .common import check_device, quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `emo-r3 demo`."""
    parser.add_argument("--model", metavar="PATH|REPO", help="folder or Hub repository (default: the miniature)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repository")
    parser.add_argument("--device-map", "--device", metavar="DEVICE", help="cpu, cuda:0, auto, ...")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> int:
    """Serve the demo until Ctrl-C."""
    quiet_libraries()
    check_address(args.host, args.port)  # before the seconds that a model takes
    from ..inference.pipeline import EmoR3Pipeline

    check_device(args.device_map)
    pipeline = EmoR3Pipeline.from_pretrained(
        args.model, revision=args.revision, device_map=args.device_map, dtype=args.dtype
    )
    launch(create_demo(pipeline), server_name=args.host, server_port=args.port)
    return 0
