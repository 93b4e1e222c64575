"""The upload half of Xet: blocks of compressed chunks ("xorbs"), then a list of the chunks of each file ("shard").

Downloads stay plain HTTP, which clients accept from a Hub that never sends X-Xet-Hash. Integers are little-endian.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import lz4.frame
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .access import Caller, Name, RawBody, Refusal, StoreOf, open_to_requests, writable
from .store import Store

router = APIRouter()
SHARD_HEADER = RECORD = 48  # bytes; every record of a shard has the same length
END_OF_FILES = b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30
NONE, LZ4, BYTE_GROUPS = 0, 1, 2  # how a chunk is compressed; the last one is LZ4 too, of four interleaved groups


@router.get("/api/{kind}/{owner}/{name}/xet-write-token/{revision}")
def write_token(
    request: Request,
    store: StoreOf,
    user: Caller,
    kind: str,
    owner: str,
    name: str,
    revision: Name,
    create_pr: bool = False,
) -> JSONResponse:
    (open_to_requests if create_pr else writable)(store, user, kind, f"{owner}/{name}")
    cas, token, expires = f"{request.app.state.url}/cas", store.sign("xet"), int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return JSONResponse({"casUrl": cas, "accessToken": token, "exp": expires}, headers=headers)


def check_token(request: Request, store: Store) -> None:
    """Only who was given a write token may upload."""
    if request.headers.get("authorization") != f"Bearer {store.sign('xet')}":
        raise Refusal(401, "A Xet write token is needed")


@router.post("/cas/v1/xorbs/{prefix}/{xorb}")
def add_xorb(request: Request, store: StoreOf, body: RawBody, prefix: str, xorb: str) -> dict[str, bool]:
    check_token(request, store)
    path, new = store.root / "xorb" / hex_name(xorb), store.part()
    inserted = not path.exists()
    new.write_bytes(body)
    new.replace(path)
    return {"was_inserted": inserted}


@router.post("/cas/v1/shards")
def add_shard(request: Request, store: StoreOf, body: RawBody) -> dict[str, int]:
    check_token(request, store)
    for sha256, segments in files_of_shard(body):
        path = store.part()
        with open(path, "wb") as file:
            for xorb, first, end in segments:
                source = store.root / "xorb" / xorb
                if not source.exists():
                    raise Refusal(400, f"the shard names xorb {xorb}, unknown here: a new server needs a new HF_HOME")
                file.writelines(chunks_of_xorb(source)[first:end])
        if not store.add_large(path, sha256):
            raise Refusal(400, f"the chunks of {sha256} make another file")
    return {"result": 1}


def hex_name(text: str) -> str:
    """The text, if it is a hash and so safe as a file's name."""
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise Refusal(400, f"{text!r} is not a hash")
    return text


def hash_text(data: bytes) -> str:
    """How Xet writes a hash: four 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))


def files_of_shard(shard: bytes) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Each file's SHA-256 with its pieces: xorb, first chunk, end chunk."""
    at = SHARD_HEADER
    while shard[at : at + 32] != END_OF_FILES:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += RECORD
        segments = []
        for _ in range(count):
            first, end = struct.unpack_from("<II", shard, at + 40)
            segments.append((hash_text(shard[at : at + 32]), first, end))
            at += RECORD
        if flags & HAS_VERIFICATION:
            at += count * RECORD
        if not flags & HAS_SHA256:
            raise Refusal(400, "a file of the shard comes without its SHA-256")
        yield hash_text(shard[at : at + 32]), segments
        at += RECORD


def chunks_of_xorb(path: Path) -> list[bytes]:
    """The chunks of a xorb, unpacked: each has a header of 8 bytes, and a footer may follow the last."""
    data, at, chunks = path.read_bytes(), 0, []
    while at < len(data) and data[at] == 0:  # the version; the footer begins with a letter
        packed = int.from_bytes(data[at + 1 : at + 4], "little")
        scheme = data[at + 4]
        length = int.from_bytes(data[at + 5 : at + 8], "little")
        chunk = data[at + 8 : at + 8 + packed]
        if scheme != NONE:
            chunk = lz4.frame.decompress(chunk)
        if scheme == BYTE_GROUPS:
            chunk = interleave(chunk)
        if len(chunk) != length:
            raise Refusal(400, f"a chunk has {len(chunk)} bytes, its header says {length}")
        chunks.append(chunk)
        at += 8 + packed
    return chunks


def interleave(groups: bytes) -> bytes:
    """Undo the grouping of bytes by their position modulo 4."""
    chunk, at = bytearray(len(groups)), 0
    for first in range(4):
        count = len(range(first, len(groups), 4))
        chunk[first::4] = groups[at : at + count]
        at += count
    return bytes(chunk)
