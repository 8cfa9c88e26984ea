"""The fields of train and distil requests and of jobs: the one list from which signatures and options come.

Ranges and defaults are the service's: ``Client.limits()`` tells them.
"""

from typing import Annotated, Literal, TypedDict

Task = Literal["auto", "classification", "regression"]


class Sweep(TypedDict, total=False):
    """Values of which each combination is trained, 64 at most."""

    learning_rate: list[float]
    dropout: list[float]


class _Shared(TypedDict, total=False):
    dataset_id: Annotated[str, "id of an uploaded table"]
    data_path: Annotated[str, "file below a data root of the service"]
    target_column: Annotated[str, "column to predict"]
    sheet_name: Annotated[str, "sheet of a spreadsheet; the first by default"]
    task: Annotated[Task, "what to predict"]
    training_mode: Annotated[str, "kind of model: mlp_dense, linear_glm_baseline, tabresnet …"]
    exclude_columns: Annotated[list[str], "columns not to learn from"]
    date_columns: Annotated[list[str], "columns to read as dates"]
    test_size: Annotated[float, "share of the rows kept for the test"]
    epochs: Annotated[int, "passes over the training rows, at most"]
    batch_size: Annotated[int, "rows a step"]
    learning_rate: Annotated[float, "at the start; it falls along a cosine"]
    early_stopping_patience: Annotated[int, "epochs without improvement before stopping; 0 runs all"]
    random_seed: Annotated[int, "of split, weights and order of rows"]
    max_seconds: Annotated[float, "of training, after which no further epoch begins"]
    interval: Annotated[float, "share of new values that intervals around predictions shall hold"]
    importance: Annotated[bool, "measure how much each column matters"]
    device: Annotated[str, "where to train: cpu, cuda or cuda:N; the best there is by default"]
    save_model: Annotated[bool, "keep the run as a model, which does not expire"]
    model_id: Annotated[str, "name of the saved model"]
    overwrite: Annotated[bool, "replace a saved model of that name"]


class TrainFields(_Shared, total=False):
    """Of a train request; ``target_column`` and one of ``dataset_id`` and ``data_path`` must be there."""

    hidden_dim: Annotated[int, "width of the hidden layers"]
    num_hidden_layers: Annotated[int, "number of hidden layers"]
    dropout: Annotated[float, "share of the hidden units left out of a step"]
    ensemble_size: Annotated[int, "models that are trained together and kept as one; 1 by default"]
    sweep: Annotated[Sweep, "learning_rate and dropout as lists: the best combination is kept"]


class DistillFields(_Shared, total=False):
    """Of a distil request; one teacher must be there besides."""

    teacher_run_id: Annotated[str, "run to learn from"]
    teacher_model_path: Annotated[str, "model file in storage to learn from"]
    teacher_model_id: Annotated[str, "saved model to learn from"]
    temperature: Annotated[float, "softens the teacher's probabilities"]
    alpha: Annotated[float, "share of the loss on the true labels"]
    student_hidden_dim: Annotated[int, "width of the student's hidden layers"]
    student_num_hidden_layers: Annotated[int, "number of the student's hidden layers"]
    student_dropout: Annotated[float, "as dropout, of the student"]


class AnyFields(TrainFields, DistillFields, total=False):
    """Of either kind: what a retry may change."""


class JobOptions(TypedDict, total=False):
    """What concerns a training job and not its model."""

    experiment_name: Annotated[str, "name of the experiment it belongs to"]
    project_id: Annotated[str, "project it belongs to; lists can be narrowed to one"]
    tags: Annotated[list[str], "words without blanks"]
    notes: Annotated[str, "free text"]
    priority: Annotated[int, "-10 to 10; higher ones start first"]
    time_limit_s: Annotated[float, "seconds after which an attempt is ended"]
    callback_url: Annotated[str, "http address that is told of every change of state"]
    on_oom: Annotated[Literal["fail", "reduce_batch"], "what to do where the memory of the GPU is too small"]
    executor: Annotated[Literal["ray", "external"], "who trains: a trainer of the service, or one of yours"]
    strict: Annotated[bool, "refuse at once what only the data shows to be wrong"]


class TrainJobFields(TrainFields, JobOptions, total=False):
    """Of a job that trains."""


class DistillJobFields(DistillFields, JobOptions, total=False):
    """Of a job that distils."""
