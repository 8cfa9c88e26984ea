"""Requests that work when they are sent as they stand, in this order: the documentation's and the tests'."""

from typing import Final

EXAMPLE_CSV: Final = "length,width,colour,kind\n" + "".join(
    f"{1.0 + (i * 7) % 13 / 4:.2f},{0.2 + (i * 5) % 11 / 9 + (i % 2):.2f},{('red', 'green', 'blue')[i % 3]},"
    f"{('ash', 'oak')[i % 2]}\n"
    for i in range(60)
)
EXAMPLE_NAME: Final = "trees.csv"
EXAMPLE_MODEL: Final = "example-teacher"
EXAMPLE_STUDENT: Final = "example-student"


def train_example(dataset_id: str) -> dict[str, object]:
    return {
        "dataset_id": dataset_id,
        "target_column": "kind",
        "epochs": 20,
        "save_model": True,
        "model_id": EXAMPLE_MODEL,
        "overwrite": True,
    }


def distill_example(dataset_id: str) -> dict[str, object]:
    return {
        "dataset_id": dataset_id,
        "target_column": "kind",
        "teacher_model_id": EXAMPLE_MODEL,
        "epochs": 20,
        "save_model": True,
        "model_id": EXAMPLE_STUDENT,
        "overwrite": True,
    }


def predict_example() -> dict[str, object]:
    # No null in it: FastAPI leaves nulls out of the documentation.
    rows = [
        {"length": 1.5, "width": 0.4, "colour": "red"},
        {"length": 3.25, "width": 1.9, "colour": "violet"},
    ]
    return {"model_id": EXAMPLE_MODEL, "rows": rows}
