"""Run the Hub by hand: python -m tests.hub_server --port 8990 --root /tmp/hub"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from .access import TOKENS
from .server import HubServer


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description="A small Hub on this machine.")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--root", type=Path, help="folder that keeps everything (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-") as folder:
        server = HubServer(args.root or Path(folder), port=args.port)
        with server:
            print(f"HF_ENDPOINT={server.url}", flush=True)
            for token, user in TOKENS.items():
                print(f"HF_TOKEN={token}  # {user.name}", flush=True)
            server.wait()


if __name__ == "__main__":
    main()
