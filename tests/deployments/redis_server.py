"""A Redis for tests, behind a real socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import fakeredis
import redis


@contextmanager
def redis_server() -> Iterator[str]:
    """Its URL. It knows the scripts of the limits library: unlike Redis it hangs up on those it does not."""
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    with redis.Redis(port=server.server_address[1]) as client:
        for script in (resources.files("limits") / "resources/redis/lua_scripts").iterdir():
            client.script_load(script.read_bytes())
    yield f"redis://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)
