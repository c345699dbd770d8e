"""The other end of :class:`boltzmix.benchmarks.peers.limited.Limited`: a process that runs what it is sent."""

import functools
import pickle
import sys
from multiprocessing.connection import Connection
from typing import Any

import torch

from boltzmix.benchmarks.peers.limited import Sent


@functools.lru_cache(maxsize=16)
def opened(packed: bytes) -> Any:
    """The object of a pickle: the same one for the same bytes, so that programs compiled for it are found again."""
    found = pickle.loads(packed)
    return found.density() if isinstance(found, Sent) else found


def serve(connection: Connection) -> None:
    """Run function after function until the other end closes; what one raises is sent back in its place."""
    while True:
        try:
            parts = connection.recv()
        except EOFError:
            return
        try:
            function, *args = map(opened, parts)
            answer = pickle.dumps(function(*args))
        except Exception as error:
            answer = pickle.dumps(f"{type(error).__name__}: {error}")
        connection.send_bytes(answer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Connection(int(sys.argv[1])))
