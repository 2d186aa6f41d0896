"""Memory of a pool on a CPU, made ready before it is needed.

A page that nobody has touched costs whoever writes to it first, and in a pass the wait of everybody who is answered: on a virtual
machine a third of a second for the 120 MB of huge pages under the next block of all layers.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

from luthier.nets.paged.batch import BLOCK
from luthier.nets.paged.pool import Pool


class Pages:
    """Keeps some of the pool ready beyond the blocks used so far, while nobody is answered. Whoever makes one closes it.

    Linux can be asked for it, from 5.14 on; elsewhere, as on a GPU, nothing is done.
    """

    def __init__(self, pool: Pool) -> None:
        both = (pool.keys_LPKD, pool.values_LPKD)
        self._pool = pool  # whose memory is touched, until the thread has ended
        self._layers = [layer_PKD.data_ptr() for kept_LPKD in both for layer_PKD in kept_LPKD]
        self._block_bytes = pool.keys_LPKD[0, :BLOCK].nbytes
        self._ahead = min(-(-pool.blocks // 2), _AHEAD_BYTES // (len(self._layers) * self._block_bytes))
        self._ready = 0
        """Blocks, from the first."""
        self._wanted = self._ahead
        self._calls = threading.Semaphore(1)
        self._is_quiet = threading.Event()
        self._is_quiet.set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="pool-pages", daemon=True)
        if sys.platform.startswith("linux") and pool.keys_LPKD.device.type == "cpu":
            self._thread.start()

    def pause(self) -> None:
        """Somebody is answered."""
        self._is_quiet.clear()

    def resume(self, reached: int) -> None:
        """Nobody is answered any more; the first `reached` blocks have been used."""
        self._is_quiet.set()
        if (wanted := min(reached + self._ahead, self._pool.blocks)) > self._wanted:
            self._wanted = wanted
            self._calls.release()

    def close(self) -> None:
        """May be called again."""
        self._is_closed = True
        self._is_quiet.set()
        self._calls.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        """No tensor is touched here: a process that ends stops this thread wherever it is."""
        while not self._is_closed:
            self._calls.acquire()
            wanted = self._wanted
            for layer in self._layers:
                if not self._touch(layer + self._ready * self._block_bytes, layer + wanted * self._block_bytes):
                    return
            self._ready = wanted

    def _touch(self, begin: int, end: int) -> bool:
        """Have these addresses' pages as if something had been written; False where the system does not, or this is closed."""
        for piece in range(begin // mmap.PAGESIZE * mmap.PAGESIZE, end, _PIECE):
            self._is_quiet.wait()
            if self._is_closed or _madvise(piece, min(_PIECE, end - piece), _POPULATE_WRITE):
                return False
        return True


_AHEAD_BYTES = 2**29
_PIECE = 2**21  # bytes; a huge page's
_POPULATE_WRITE = 23  # of Linux; what is there stays
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
