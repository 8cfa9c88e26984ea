"""A service to be fuzzed, in this process."""

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import core.pipeline  # noqa: F401  # torch is loaded before a training is timed
from deployments.settings import EdgeSettings, RateSettings, RegistrySettings, Settings, TrainerSettings
from deployments.web import build_web_app
from tests.deployments.fuzz.exchange import FILE, MODEL, RUN, TABLE, TOKEN, Answer, Sent, posted, upload_of
from tests.deployments.fuzz.judge import Judge
from tests.deployments.local import QUICK, TRAIN, local_service, settings_in, strict_json


class Target:
    """A service with a dataset, a run and a model, which come back when a request deletes them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._service = local_service(settings)
        self.app = build_web_app(self._service)
        self.document = self.app.openapi()
        self.dataset = ""

    async def prepare(self) -> None:
        (self.settings.roots()[0] / FILE).write_text(TABLE)
        self.dataset = strict_json((await self.send(upload_of(TABLE.encode()))).body)["dataset_id"]
        train = QUICK | {"dataset_id": self.dataset, "save_model": True, "model_id": MODEL}
        answer = await self.send(posted(TRAIN, json.dumps(train).encode()))
        assert answer.status == 200, answer.body
        run_id = strict_json(answer.body)["run_id"]
        self._entry = dataclasses.replace(await self._service.get_run(run_id), run_id=RUN)
        self._file = bytes(await self._service.read_bundle(run_id))
        await self.restore()

    async def restore(self) -> None:
        await self.send(upload_of(TABLE.encode()))
        await self._service._registry.store(self._entry, self._file)
        self._service.models.save(MODEL, self._file, overwrite=True)

    async def send(self, sent: Sent) -> Answer:
        """Answers as a server would have them; whatever the application raises is raised."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": sent.path,
            "raw_path": quote(sent.path).encode(),
            "query_string": sent.query,
            "root_path": "",
            "headers": list(sent.headers),
            "client": ("127.0.0.1", 1),
            "server": ("stillhouse", 80),
        }
        half = len(sent.body) // 2
        incoming = [sent.body[:half], sent.body[half:]]
        messages, done = [], asyncio.Event()

        async def receive():
            if incoming:
                return {"type": "http.request", "body": incoming.pop(0), "more_body": bool(incoming)}
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            messages.append(message)

        await self.app(scope, receive, send)
        start, *parts = messages
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]
        }
        return Answer(start["status"], headers, b"".join(part.get("body", b"") for part in parts))

    async def send_all(
        self, requests: Sequence[Sent], *, restoring: bool = True
    ) -> list[tuple[Sent, Answer | None, list[str]]]:
        """Each with its answer, which is None where there was none, and its faults."""
        judge = Judge(self.document, [self.settings.expanded_storage_url().removeprefix("file://")])
        judged = []
        for sent in requests:
            try:
                answer = await self.send(sent)
            except Exception as error:  # noqa: BLE001  # a server would break the connection off
                judged.append((sent, None, [f"raised {error!r} from {error.__cause__!r}"]))
                continue
            judged.append((sent, answer, list(judge.faults(sent, answer))))
            if restoring and answer.status == 204:
                await self.restore()
        return judged


@contextmanager
def open_target() -> Iterator[tuple[Target, asyncio.Runner]]:
    """With tokens and without rate limits but that for wrong tokens."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        tokens = Path(folder) / "tokens"
        tokens.write_text(TOKEN)
        rates = RateSettings(read=None, predict=None, train=None, write=None)
        settings = settings_in(
            Path(folder),
            allow_no_auth=False,
            tokens_file=str(tokens),
            edge=EdgeSettings(rates=rates),
            registry=RegistrySettings(max_items=100_000, ttl_seconds=100_000),
            trainer=TrainerSettings(job_timeout_s=10),
        )

        async def make() -> Target:
            target = Target(settings)
            await target.prepare()
            return target

        yield runner.run(make()), runner
