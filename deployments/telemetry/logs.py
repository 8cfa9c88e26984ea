"""Log records: free of secrets, paths and rows, and one JSON object a line."""

import json
import logging
import re
import traceback
from typing import Final

from core.catalogue import ErrorType
from core.errors import StillhouseError
from core.redaction import redact, redact_text

_OWN: Final = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
_FRAME: Final = re.compile(r'File "[^"\n]*?([^/\\"\n]+[/\\][^/\\"\n]+)"')


class Redaction(logging.Filter):
    """Takes what must not leave the service out of messages, fields and tracebacks.

    Serve's access log passes as it is: it names the template of a route, a status and a time, once a request.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "serve_access_log", False):
            return True
        record.msg, record.args = redact_text(_message(record)), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redacted_traceback("".join(traceback.format_exception(*record.exc_info)))
        elif record.exc_text:
            record.exc_text = redacted_traceback(record.exc_text)
        fields = {name: value for name, value in record.__dict__.items() if name not in _OWN}
        record.__dict__.update(redact(fields))  # type: ignore[call-overload]  # a mapping stays one
        return True


class FaultsAlone(logging.Filter):
    """Makes a plain line of the traceback that Serve writes in each replica which raises an error of ours.

    Those of faults stay; of the rest the ingress writes a line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StillhouseError) and error.error_type is not ErrorType.SYSTEM_ERROR:
            record.msg, record.args, record.exc_info = f"{error.code}: {error.message}", (), None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


class Forward(logging.Handler):
    """Hands records on to another logger, with its level, filters and handlers as they are then."""

    def __init__(self, target: logging.Logger) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        if self._target.isEnabledFor(record.levelno):
            self._target.handle(record)


class JsonLines(logging.Formatter):
    """As Serve writes its lines, for processes that are no replicas."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in record.__dict__.items() if name not in _OWN}
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            **fields,
        }
        if record.exc_info:
            line["exc_text"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def forward_logs(names: tuple[str, ...], target: logging.Logger) -> None:
    """Sends what these loggers and those below them are told to ``target``, redacted; once is enough."""
    if not any(isinstance(kept, Redaction) for kept in target.filters):
        target.addFilter(FaultsAlone())
        target.addFilter(Redaction())
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers = [Forward(target)]
        logger.setLevel(logging.DEBUG)  # the target decides
        logger.propagate = False


def write_json_lines(names: tuple[str, ...], level: int = logging.INFO) -> None:
    """Sends what these loggers and those below them are told to standard error, redacted."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    handler.addFilter(Redaction())
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def redacted_traceback(text: str) -> str:
    """A traceback with the last folder and the name of each file, and otherwise redacted.

    >>> redacted_traceback('File "/srv/app/core/table/reader.py", line 3, in read')
    'File "table/reader.py", line 3, in read'
    """
    return redact_text(_FRAME.sub(r'File "\1"', text))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # wrong arguments of a log call must not end the work
        return str(record.msg)
