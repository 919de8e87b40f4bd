"""Faults that are tried again: messages as the tools print them, most of them taken from a run."""

import pytest

from flows.dvc_stages import failure_message
from flows.faults import StageFailed, TransientFault, is_transient, retry_condition, retry_options
from hpgr.config import ConfigError, Orchestrate
from hpgr.runtime import UserError

TRANSIENT = [
    "ERROR: Unable to acquire lock. Most likely another DVC process is running or was terminated",
    "'artifacts/slow.txt' is busy, it is being blocked by:\n  (PID 24120): dvc repro slow",
    "(sqlite3.OperationalError) database is locked",
    'Could not connect to the endpoint URL: "http://127.0.0.1:8333/hpgr-dvc/files"',
    "ERROR: unexpected error - [Errno 111] Connection refused",
    "HTTPConnectionPool(host='127.0.0.1', port=5000): Max retries exceeded with url: /api/2.0",
    "[Errno -3] Temporary failure in name resolution",
    "An error occurred (SlowDown) when calling the PutObject operation",
    "An error occurred (InternalError) when calling the PutObject operation: We encountered an",
    "An error occurred (503) when calling the HeadObject operation: 503 Service Unavailable",
    "API request failed with error code 503 != 200",
    "Connection aborted.', RemoteDisconnected('Remote end closed connection without response')",
    "Read timed out. (read timeout=120)",
    "ConnectTimeoutError: connect timeout on endpoint URL",
    "All connection attempts failed",
]
LASTING = [
    "params.yaml is wrong in 1 places",
    "ERROR: output 'artifacts/validated' does not exist",
    "An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
    "An error occurred (NoSuchBucket) when calling the ListObjectsV2 operation",
    "ERROR: no remote specified in DVC repository",
    "RESOURCE_DOES_NOT_EXIST: Registered Model with name=hpgr not found",
    "[Errno 28] No space left on device",
    "HTTPSConnectionPool(host='mlflow', port=443): Max retries exceeded with url: /api/2.0 (Caused "
    "by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify "
    "failed: self-signed certificate (_ssl.c:1006)')))",
    '(pymysql.err.InternalError) (1054, "Unknown column")',
    "Scope timed out after 8.0 second(s).",
    "CUDA out of memory",
    "the loss is not finite at step 503",
]


@pytest.mark.parametrize("message", TRANSIENT)
def test_what_passes_by_itself_is_tried_again(message):
    assert is_transient(RuntimeError(message))


@pytest.mark.parametrize("message", LASTING)
def test_what_stays_is_not(message):
    assert not is_transient(RuntimeError(message))


@pytest.mark.parametrize("kind", [StageFailed, UserError, ConfigError])
@pytest.mark.parametrize("message", TRANSIENT)
def test_a_mistake_or_a_failed_stage_is_never_tried_again_whatever_it_says(kind, message):
    assert not is_transient(kind(message))


@pytest.mark.parametrize(("cause", "expected"), [(TRANSIENT[4], True), (LASTING[0], False)])
def test_the_reason_given_with_a_mistake_decides_where_that_is_known(cause, expected):
    """As hpgr tells it where the registry does not answer."""
    error = UserError("the registry cannot be reached")
    error.__cause__ = RuntimeError(cause)
    assert is_transient(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientFault("anything"), True),
        (ConnectionResetError(), True),
        (TimeoutError("Scope timed out after 5 second(s)."), False),
        (KeyboardInterrupt("Connection refused"), False),
        (SystemExit("Connection refused"), False),
    ],
)
def test_the_kind_decides_where_it_is_known(error, expected):
    assert is_transient(error) is expected


def test_prefect_asks_with_the_error_in_a_state():
    from prefect.states import Failed

    assert retry_condition(None, None, Failed(data=TransientFault("busy")))
    assert not retry_condition(None, None, Failed(data=StageFailed("Connection refused")))
    assert not retry_condition(None, None, Failed(message="Connection refused"))


def test_each_delay_is_twice_the_one_before():
    settings = Orchestrate(retries=3, retry_delay_s=10, stage_timeout_s=None, remote={})
    assert retry_options(settings)["retry_delay_seconds"] == [10, 20, 40]
    assert retry_options(settings.model_copy(update={"retries": 0}))["retries"] == 0


@pytest.mark.parametrize("status", ["-9", "137"])
def test_a_stage_killed_from_outside_says_so_and_is_not_transient(status):
    closing = f"ERROR: failed to reproduce 'x': failed to run: hpgr finetune, exited with {status}"
    message = failure_message(["finetune 1/6: 40%", closing])
    assert "killed from outside" in message
    assert "goes on from the last checkpoint" in message
    assert not is_transient(StageFailed(message))
