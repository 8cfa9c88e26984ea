"""The predictor: keeps bundles ready and computes the rows of many requests together."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import numpy as np

from core.bundles import Bundle
from core.errors import DatasetTooLargeError, StillhouseError, UnexpectedError, without_paths
from core.exchange import (
    JSON,
    Columns,
    ModelReference,
    choose_media_type,
    columns_of,
    parse_predict_body,
    read_columns,
    reference,
    write_predictions,
)
from core.export import EXPORTS, ExportFormat
from core.prediction import Prediction
from core.prediction import Predictor as Model
from core.saved_models import ModelStore
from core.storage import Storage
from deployments.breakers import Breakers
from deployments.instruments import telemetry
from deployments.origin import Origin
from deployments.predict_call import PredictAnswer, PredictCall, packed
from deployments.registry import RegistryClient
from deployments.settings import Limits, Settings

Result = TypeVar("Result")

RECHECK_S: Final = (
    0.5  # an expired or deleted run is served no longer than this, plus one look at the registry
)
MOST_WARNINGS: Final = 20
INLINE_ROWS: Final = 64  # up to here a hop to another thread costs more than the product


@dataclass(slots=True)
class _Ready:
    """A bundle in use.

    Attributes:
        version: Changes when a saved model is replaced.
        checked_at: When the owner was last asked whether it still exists, monotonic seconds.
    """

    model: Model
    size_bytes: int
    version: str
    checked_at: float


@dataclass(slots=True)
class _Waiting:
    model: Model
    features: np.ndarray
    done: asyncio.Future[Prediction] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Predictor:
    """Answers predict requests.

    Rows are encoded per request, so a malformed row fails its own request alone; the network then runs once
    over the rows of all requests that wait for the same model.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.observer = telemetry(settings.telemetry, "predictor")
        self._settings, self._limits, self._clock = settings.predictor, settings.limits, clock
        storage = Storage(settings.expanded_storage_url(), settings.storage_options)
        self._models = ModelStore(storage)
        self._registry = RegistryClient(settings)
        self._breakers = Breakers(self._registry.breaker, storage.breaker)
        self._cache: OrderedDict[ModelReference, _Ready] = OrderedDict()
        self._loading: dict[ModelReference, asyncio.Lock] = {}
        self._waiting: list[_Waiting] = []
        self._drainer: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="predicting")

    def __del__(self) -> None:
        """Serve calls it when the replica ends, before it kills the process."""
        self.observer.close()

    async def check_health(self) -> None:
        """Async, so that it answers while a large table is computed."""
        self.observer.spared(self._breakers.by_service)
        self._breakers.obey(self._registry)

    async def ping(self) -> None:
        """Nothing: the cost of a call."""

    async def predict(self, call: PredictCall) -> PredictAnswer:
        """Decodes, encodes, predicts and writes the answer.

        Raises:
            StillhouseError: as the contract's section 7 has it.
        """
        started = self._clock()
        if call.media_type == JSON:
            body = parse_predict_body(bytes(call.body), call.run_id, call.model_id)
            model = await self._model(reference(body.run_id, body.model_id))
            accept = choose_media_type(call.accept, JSON)
            columns = columns_of(body, [column.name for column in model.bundle.encoder.columns])
            large = max(map(len, columns.values()), default=0) > INLINE_ROWS
            wanted = call.intervals or body.intervals
        else:
            model = await self._model(reference(call.run_id, call.model_id))
            accept = choose_media_type(call.accept, call.media_type)
            columns = await self._run(True, lambda: read_columns(memoryview(call.body), call.media_type))  # type: ignore[arg-type]
            large, wanted = True, call.intervals
        check_size(columns, self._limits)
        encoded = await self._run(large, lambda: model.encode(columns))
        prediction = await self._compute(model, encoded.features)
        intervals = model.intervals(prediction.values) if wanted else None
        warnings = _warnings(encoded.unseen_counts, encoded.null_counts)
        answer = await self._run(large, lambda: _written(prediction, intervals, warnings, accept))
        self.observer.predicted(len(encoded.features), self._clock() - started)
        return answer

    async def export(self, model_id: str, format: ExportFormat) -> np.ndarray:  # noqa: A002
        """A saved model in another format, as uint8 array; raises ModelNotFoundError."""
        file = await asyncio.to_thread(self._models.read, model_id)
        data = await asyncio.to_thread(lambda: EXPORTS[format](Bundle.from_bytes(file)))
        return np.frombuffer(data, np.uint8)

    async def _model(self, wanted: ModelReference) -> Model:
        ready = had = self._cache.get(wanted)
        if ready is None or self._clock() - ready.checked_at > RECHECK_S:
            async with self._loading.setdefault(wanted, asyncio.Lock()):
                ready = await self._refreshed(wanted)
        else:
            self._cache.move_to_end(wanted)
        self.observer.looked_up(hit=ready is had)
        return ready.model

    async def _refreshed(self, wanted: ModelReference) -> _Ready:
        """The bundle, after its owner said that it still exists."""
        ready, now = self._cache.get(wanted), self._clock()
        if ready is not None and now - ready.checked_at <= RECHECK_S:
            return ready  # another request asked while this one waited
        try:
            if wanted.kind == "run_id":
                ready = await self._checked_run(wanted.name, ready)
            else:
                ready = await self._checked_model(wanted.name, ready)
        except StillhouseError:
            self._cache.pop(wanted, None)
            self._loading.pop(wanted, None)
            raise
        ready.checked_at = now
        self._cache[wanted] = ready
        self._cache.move_to_end(wanted)  # a key that was there keeps its place otherwise
        self._trim()
        return ready

    async def _checked_run(self, run_id: str, ready: _Ready | None) -> _Ready:
        if ready is not None:
            await self._registry.touch(run_id)
            return ready
        _, file = await self._registry.use(run_id)
        return await self._loaded(file, run_id)

    async def _checked_model(self, model_id: str, ready: _Ready | None) -> _Ready:
        version = await asyncio.to_thread(self._models.version, model_id)
        if ready is not None and ready.version == version:
            return ready
        return await self._loaded(await asyncio.to_thread(self._models.read, model_id), version)

    async def _loaded(self, file: bytes | memoryview, version: str) -> _Ready:
        model = await asyncio.to_thread(lambda: Model(Bundle.from_bytes(file)))
        return _Ready(model, len(file), version, self._clock())

    def _trim(self) -> None:
        while (
            len(self._cache) > 1
            and sum(r.size_bytes for r in self._cache.values()) > self._settings.cache_bytes
        ):
            dropped, _ = self._cache.popitem(last=False)
            self._loading.pop(dropped, None)

    async def _compute(self, model: Model, features: np.ndarray) -> Prediction:
        waiting = _Waiting(model, features)
        self._waiting.append(waiting)
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await waiting.done

    async def _drain(self) -> None:
        """Computes what waits, oldest first, joining requests of one model up to ``batch_rows``."""
        while self._waiting:
            batch = self._next_batch()
            try:
                features = (
                    batch[0].features if len(batch) == 1 else np.concatenate([w.features for w in batch])
                )
                compute = partial(batch[0].model.predict, features)
                prediction = await self._run(len(features) > INLINE_ROWS, compute)
            except Exception as error:  # noqa: BLE001  # it belongs to those who wait for it
                if not isinstance(error, StillhouseError):
                    self.observer.unexpected(error, Origin())
                for waiting in batch:
                    _settle(waiting.done, error)
                continue
            start = 0
            for waiting in batch:
                end = start + len(waiting.features)
                _settle(waiting.done, prediction.part(start, end))
                start = end

    def _next_batch(self) -> list[_Waiting]:
        model, rows = self._waiting[0].model, 0
        batch: list[_Waiting] = []
        rest: list[_Waiting] = []
        for waiting in self._waiting:
            if waiting.model is model and (
                not batch or rows + len(waiting.features) <= self._settings.batch_rows
            ):
                batch.append(waiting)
                rows += len(waiting.features)
            else:
                rest.append(waiting)
        self._waiting = rest
        return batch

    async def _run(self, large: bool, work: Callable[[], Result]) -> Result:
        """Runs large work in the thread, so that the loop goes on; small work where it stands."""
        if not large:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def check_size(columns: Columns, limits: Limits) -> None:
    """Raises DatasetTooLargeError for more rows or columns than one request may bring."""
    rows = max(map(len, columns.values()), default=0)
    for name, count, limit in (
        ("rows", rows, limits.predict_rows),
        ("columns", len(columns), limits.columns),
    ):
        if count > limit:
            raise DatasetTooLargeError(f"One request may bring {limit} {name}, got {count}: send less.")


def _settle(done: asyncio.Future[Prediction], result: Prediction | Exception) -> None:
    if done.done():  # its client left
        return
    if isinstance(result, StillhouseError):
        done.set_exception(result)
    elif isinstance(result, Exception):
        message = f"The prediction failed: {without_paths(str(result))}"
        done.set_exception(UnexpectedError(message, original=result))
    else:
        done.set_result(result)


def _written(
    prediction: Prediction, intervals: np.ndarray | None, warnings: list[str], media_type: str
) -> PredictAnswer:
    data = write_predictions(
        prediction.labels() if media_type == JSON or prediction.classes else prediction.values,
        prediction.classes,
        prediction.probabilities,
        warnings,
        media_type,
        intervals,
    )
    return PredictAnswer(packed(data), media_type, warnings)


def _warnings(unseen: dict[str, int], nulls: dict[str, int]) -> list[str]:
    warnings = [
        *(f"{count} values of {name!r:.60} were not seen in training" for name, count in unseen.items()),
        *(f"{count} values of {name!r:.60} are null" for name, count in nulls.items()),
    ]
    more = len(warnings) - MOST_WARNINGS
    return warnings if more <= 0 else [*warnings[:MOST_WARNINGS], f"{more} more columns like these"]
