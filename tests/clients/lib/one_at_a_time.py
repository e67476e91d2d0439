"""TLS for clients that read and write one connection from two threads, as the blocking python-socketio does."""

import selectors
import ssl
import threading


class OneAtATime(ssl.SSLSocket):
    """Neither reads while it writes nor writes while it reads; waits outside of both.

    OpenSSL does not allow a read and a write of one connection at the same time, and Python 3.11 does not prevent them:
    a read that found nothing yet may then look like the end of the stream, and the client closes a connection that is
    well.
    """

    def recv(self, *args):
        return self._alone(super().recv, *args)

    def send(self, *args):
        return self._alone(super().send, *args)

    def _alone(self, call, *args):
        guard = self.__dict__.setdefault("guard", threading.Lock())
        while True:
            with guard:
                patience = self.gettimeout()
                self.settimeout(0)
                try:
                    return call(*args)
                except ssl.SSLWantReadError:
                    awaited = selectors.EVENT_READ
                except ssl.SSLWantWriteError:
                    awaited = selectors.EVENT_WRITE
                finally:
                    self.settimeout(patience)
            with selectors.DefaultSelector() as selector:
                selector.register(self, awaited)
                if not selector.select(patience):
                    raise TimeoutError("timed out")


def one_at_a_time():
    """A context with the usual trust whose connections are guarded in this way."""
    context = ssl.create_default_context()
    context.sslsocket_class = OneAtATime
    return context
