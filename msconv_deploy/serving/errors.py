"""Why a request is refused: each reason with its HTTP status and the name of its gRPC status code."""

from __future__ import annotations

from msconv_deploy.errors import MsconvError


class RequestError(MsconvError):
    """A request that is not answered with tensors. The message goes to the client.

    Attributes:
        http: status of the HTTP response.
        grpc: name of the gRPC status code.
        retry_after: seconds after which trying again makes sense; None: it does not.
    """

    http = 500
    grpc = "INTERNAL"
    retry_after: int | None = None


class InvalidRequestError(RequestError):
    """The request itself is wrong: a name, a shape, a type, a field, or not the protocol at all."""

    http, grpc = 400, "INVALID_ARGUMENT"


class UnknownModelError(RequestError):
    """No such model or version."""

    http, grpc = 404, "NOT_FOUND"


class TooLargeError(RequestError):
    """The body is larger than the limit."""

    http, grpc = 413, "RESOURCE_EXHAUSTED"


class UnsupportedEncodingError(RequestError):
    """The body is compressed in a way that is not understood."""

    http, grpc = 415, "UNIMPLEMENTED"


class QueueFullError(RequestError):
    """As many requests are accepted and unanswered as may be."""

    http, grpc, retry_after = 503, "RESOURCE_EXHAUSTED", 1


class StoppingError(RequestError):
    """The server takes no new requests."""

    http, grpc, retry_after = 503, "UNAVAILABLE", 1


class TimedOutError(RequestError):
    """The request took longer than the limit."""

    http, grpc = 504, "DEADLINE_EXCEEDED"


class RunFailedError(RequestError):
    """The runtime failed on inputs that fit the model's declaration."""
