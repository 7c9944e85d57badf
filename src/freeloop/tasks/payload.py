"""Arguments and results as JSON, by the annotations of a function and by Pydantic.

Validated where a task is started and again where it runs: in between lies a database, and perhaps another
version of the code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, NotRequired, get_type_hints

from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from freeloop.errors import Unprocessable

LARGEST: Final = 2**20
"""The most bytes of JSON that arguments, or a result, may have."""


class PayloadRefused(Unprocessable):
    """The arguments are not those of the task."""


class ResultRefused(Exception):
    """What a task returned cannot be kept."""


class Payload:
    """The arguments of one function, and what it returns.

    Args:
        name: What messages call the task.
        function: The function.

    Raises:
        TypeError: It takes arguments that JSON does not name, or an annotation that Pydantic cannot read.
    """

    def __init__(self, name: str, function: Callable[..., object]) -> None:
        self._name = name
        self._signature = inspect.signature(function)
        hints = _read_hints(name, function)
        fields: dict[str, Any] = {}
        for parameter in self._signature.parameters.values():
            if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                raise TypeError(
                    f"task '{name}': expected parameters with names, which its JSON has; got {parameter}"
                )
            annotation = hints.get(parameter.name, Any)
            optional = parameter.default is not parameter.empty
            fields[parameter.name] = NotRequired[annotation] if optional else annotation
        shape: Any = TypedDict(f"{name}_arguments", fields)  # type: ignore[misc]  # made here, not written
        shape.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]  # Pydantic's own
        self._arguments: TypeAdapter[dict[str, Any]] = _adapt(name, shape)
        self._result: TypeAdapter[Any] = _adapt(name, hints.get("return", Any))

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
        """Return the arguments of a call as JSON.

        Raises:
            PayloadRefused: They do not fit the function, are not JSON, or are too large (422).
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise self._refuse(str(error)) from None
        return self._render(dict(bound.arguments))

    def encode_json(self, text: bytes) -> str:
        """Return arguments that came as a JSON object, as :meth:`encode` would."""
        try:
            arguments = self._arguments.validate_json(text or b"{}")
        except ValidationError as error:
            raise self._refuse(describe(error)) from None
        return self._render(arguments)

    def _render(self, given: dict[str, Any]) -> str:
        try:
            text = self._arguments.dump_json(
                self._arguments.validate_python(given), warnings="error"
            ).decode()
        except ValidationError as error:
            raise self._refuse(describe(error)) from None
        except (PydanticSerializationError, UnicodeError) as error:
            raise self._refuse(f"not JSON: {error}") from None
        if len(text) > LARGEST:
            raise self._refuse(
                f"expected at most {LARGEST} bytes of JSON, got {len(text)}. Put what is large where the "
                "task can fetch it (a table, a file, an object store), and pass its name"
            )
        return text

    def _refuse(self, reason: str) -> PayloadRefused:
        return PayloadRefused(f"The arguments do not fit task '{self._name}'", f"{reason}.")

    def decode(self, text: str) -> dict[str, Any]:
        """Return the arguments by name.

        Raises:
            PayloadRefused: They no longer fit the function.
        """
        try:
            return self._arguments.validate_json(text)
        except ValidationError as error:
            raise PayloadRefused(
                f"The arguments do not fit task '{self._name}'",
                f"They were written by another version of the code: {describe(error)}. Start it anew with "
                "arguments that fit, or give the new parameter a default.",
            ) from None

    def encode_result(self, result: object) -> str:
        """Return what the function returned as JSON.

        Raises:
            ResultRefused: It is not of the annotated type, not JSON, or too large.
        """
        try:
            text = self._result.dump_json(self._result.validate_python(result), warnings="error").decode()
        except ValidationError as error:
            raise ResultRefused(f"the result is not what it is annotated to be: {describe(error)}") from None
        except (PydanticSerializationError, UnicodeError) as error:
            raise ResultRefused(f"the result is not JSON: {error}") from None
        if len(text) > LARGEST:
            raise ResultRefused(
                f"the result has {len(text)} bytes of JSON, and {LARGEST} are kept at most. Store it, and "
                "return where"
            )
        return text

    def decode_result(self, result: object) -> Any:  # noqa: ANN401 - what the function returns
        """Return the result out of its JSON, as Python values."""
        return self._result.validate_python(result)


def describe(error: ValidationError) -> str:
    """Return what is wrong in one line."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'arguments'}: {each['msg'][:1].lower()}{each['msg'][1:]}"
        for each in error.errors(include_url=False, include_input=False)
    )


def _read_hints(name: str, function: Callable[..., object]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"task '{name}': {error}. Annotations are read outside the function, so what they name has to be "
            "at the top of the module"
        ) from error


def _adapt(name: str, annotation: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type of any kind
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise TypeError(f"task '{name}': expected annotations that Pydantic can read; {error}") from error
