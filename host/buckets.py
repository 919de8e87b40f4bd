"""Make buckets in an S3-compatible store, for a team's MLflow artifacts and DVC remote.

    AWS_ENDPOINT_URL=http://127.0.0.1:8333 python -m host.buckets NAME ...

Needs the extra `.[team]`. Reads AWS_*. Writes the store; a bucket that is there is left alone.
"""

from __future__ import annotations

import sys

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

STORE_DEADLINE_S = 60  # it may have been started a moment ago


def make_buckets(names: list[str]) -> None:
    """Make the buckets that are not there yet; waits for a store that has just been started."""
    import boto3
    from botocore.exceptions import ClientError, EndpointConnectionError

    client = boto3.client("s3")

    @retry(
        retry=retry_if_exception_type(EndpointConnectionError),
        stop=stop_after_delay(STORE_DEADLINE_S),
        wait=wait_fixed(1),
        reraise=True,
    )
    def existing() -> set[str]:
        return {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}

    for name in sorted(set(names) - existing()):
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise


if __name__ == "__main__":
    make_buckets(sys.argv[1:])
