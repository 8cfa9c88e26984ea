"""Detached actors as replicas see them: found or started, replaced when outdated, outlasting restarts."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from core.errors import ServiceUnavailableError, StillhouseError, UnexpectedError
from core.resilience import Breaker, Caller

log = logging.getLogger(__name__)

Actor = TypeVar("Actor")
Result = TypeVar("Result")


class Versioned(Protocol):
    """A configuration of an actor: two that are not equal cannot serve the same application."""

    @property
    def protocol_version(self) -> int: ...


class Detached(Generic[Actor]):
    """One named actor of a class; whoever asks for it first starts it.

    Args:
        name, namespace: Of the actor in the cluster.
        wanted: Its one argument, with a ``protocol_version``. A running one of another configuration is
            replaced, unless it is newer; nothing that it keeps outside of its process is lost.
        options: Of Ray.
        caller: How long it is waited for: an actor that was lost is started again in a second or two.
        configuration_of: What a running one was started with.
    """

    def __init__(
        self,
        actor_class: type[Actor],
        name: str,
        namespace: str,
        wanted: Versioned,
        options: Mapping[str, object],
        caller: Caller,
        configuration_of: Callable[["ActorHandle[Actor]"], Awaitable[Versioned]],
    ) -> None:
        self._class, self._name, self._namespace = actor_class, name, namespace
        self._wanted, self._options = wanted, options
        self._caller, self._configuration_of = caller, configuration_of
        self._actor: ActorHandle[Actor] | None = None

    @property
    def breaker(self) -> Breaker | None:
        return self._caller.breaker

    async def call(self, call: Callable[["ActorHandle[Actor]"], Awaitable[Result]]) -> Result:
        """The actor's answer, or the error that it raised.

        Raises:
            ServiceUnavailableError: when it does not come back in time; a call may have been done then.
        """

        async def attempt() -> Result | StillhouseError:
            """What the actor raised is returned: it answered, so there is nothing to try again."""
            try:
                if self._actor is None:
                    self._actor = await self._connect()
                return await call(self._actor)
            except (RayActorError, ObjectLostError) as error:
                self._actor = None
                raise ServiceUnavailableError(
                    f"The {self._caller.service} does not answer: try again shortly.",
                    service=self._caller.service,
                ) from error
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StillhouseError):
                    return error.cause
                log.exception("the %s failed", self._caller.service)
                return UnexpectedError(original=error.cause)

        result = await self._caller.call(attempt)
        if isinstance(result, StillhouseError):
            raise result
        return cast("Result", result)

    async def _connect(self) -> "ActorHandle[Actor]":
        actor = self._get_or_create()
        running = await self._configuration_of(actor)
        if running.protocol_version > self._wanted.protocol_version:
            raise ray.exceptions.ActorUnavailableError(
                "a newer actor runs: this replica is on its way out", None
            )
        if running != self._wanted:
            log.warning("replacing %s, which has another configuration or version", self._name)
            ray.kill(actor, no_restart=True)
            raise ray.exceptions.ActorUnavailableError("the actor is being replaced", None)
        return actor

    def _get_or_create(self) -> "ActorHandle[Actor]":
        actor_class = ray.remote(self._class).options(
            name=self._name,
            namespace=self._namespace,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=10_000,
            **self._options,
        )
        return cast("ActorHandle[Actor]", actor_class.remote(self._wanted))
