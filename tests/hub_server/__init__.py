"""A small Hugging Face Hub for the tests: real sockets on this machine, files on disk, the unmodified clients.

In a test, the fixture `hub` (tests/conftest.py) is the session's running `HubServer`; clients run in processes of
their own, as `run_client(hub, home, function, ...)`, since they read `HF_ENDPOINT` when they are imported: forks of
one that has imported them for this Hub, or, with other variables, of one that has imported what doesn't read any. By
hand:

    python -m tests.hub_server --port 8990 --root /tmp/hub
    HF_ENDPOINT=http://127.0.0.1:8990 HF_HOME=/tmp/home HF_TOKEN=hf_owner0000000000 emo-r3 push dataset DIR REPO --yes

Four people: `owner` writes to `owner/` and `emo-r3/`; `reader` is a member of emo-r3 that only reads; `stranger` has
an account and nothing else; without a token one is anonymous. The tokens are `hf_<name>0000000000`. Use a new HF_HOME
for each new server: clients remember what an earlier server on the same port had.

What can be made to go wrong (`hub.faults.add`, or by hand):

    curl -X POST localhost:8990/_test/faults -d '{"kind": "503", "where": "POST .*/commit/", "times": 2}'

`503` and `409` answer so instead of working, `412` lets a foreign commit land first, `cut` drops the connection in
the middle of the answer, or `after` so many bytes of it, `stall` waits for `seconds` there. `where` is a regular
expression on "METHOD /path". `DELETE` on the
same address forgets the faults, `GET /_test/requests` lists what was asked so far.

server.py: the running server. faults.py: what goes wrong. store.py: repositories and blobs on disk. access.py: who may
do what. api.py: accounts, repositories, listings, branches and tags. cards.py: the check of a README's metadata.
transfer.py: uploads, commits and downloads. xet.py: the Xet upload. spaces.py: what only Spaces have.
clients.py: clients in processes of their own.
"""

from .clients import client_command, run_client
from .server import HubServer

__all__ = ["HubServer", "client_command", "run_client"]
