"""Trainers killed at random under load: nothing that was acknowledged is lost, and every answer is ours.

For 20 seconds; ``make chaos`` goes on for two minutes.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
import ray

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
ROW = {"x0": 1.5, "x1": 0.1, "x2": 0.3, "x3": 0, "x4": 0, "x5": 0, "colour": "red"}


class Load:
    """Threads that each repeat one call until told to stop, and keep every answer."""

    def __init__(self, calls: list[Callable[[], httpx.Response]]) -> None:
        self.answers: list[httpx.Response] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(call,)) for call in calls]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, call: Callable[[], httpx.Response]) -> None:
        while not self._stop.is_set():
            answer = call()
            self.answers.append(answer)
            if answer.status_code != 200:
                self._stop.wait(0.5)


def test_killing_trainers_at_random_loses_nothing_and_leaves_no_untyped_answer(
    service, dataset: str, teacher: dict
) -> None:
    payload = {"dataset_id": dataset, "target_column": "kind", "epochs": 3}
    predict = {"run_id": teacher["run_id"], "rows": [ROW]}
    draw = random.Random(7)  # noqa: S311
    killed = 0
    with service.client() as client:
        calls = [lambda: client.post("/api/v1/train", json=payload)] * 4
        calls += [lambda: client.post("/api/v1/predict", json=predict)]
        with Load(calls) as load:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                time.sleep(draw.uniform(0.5, 5))
                for name in service.replicas("Trainer"):
                    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
                    killed += 1
        assert client.post("/api/v1/breakers/trainer/reset").status_code == 204
        assert killed >= 2
        trained = [a for a in load.answers if a.request.url.path.endswith("/train")]
        predicted = [a for a in load.answers if a.request.url.path.endswith("/predict")]
        for answer in trained:
            assert answer.status_code in (200, 503), answer.text
            assert answer.json()["status"] == ("ok" if answer.status_code == 200 else "error")
            if answer.status_code == 503:
                assert answer.headers["X-Error-Code"] in ("TRAINER_UNREACHABLE", "CIRCUIT_OPEN"), answer.text
                assert int(answer.headers["Retry-After"]) >= 1
        assert Counter(a.status_code for a in predicted) == {200: len(predicted)}
        acknowledged = [answer for answer in trained if answer.status_code == 200]
        assert acknowledged
        for answer in acknowledged[-60:]:  # older ones may have made room
            assert client.get(f"/api/v1/runs/{answer.json()['run_id']}").status_code == 200
        after = client.post("/api/v1/train", json=payload)
        assert after.status_code == 200, after.text
