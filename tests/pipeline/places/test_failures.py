"""What a library of object storage says is read for its meaning: digits and names in it mean nothing."""

from __future__ import annotations

import pytest

from pipeline.core.errors import StoreError
from pipeline.places.failures import explaining

SILENCE = """Generic S3 error: Error performing GET http://127.0.0.1:9/my-region-bucket/file in {}, after 8
retries, max_retries: 8, retry_timeout: 60s - HTTP error: error sending request

Debug source:
..."""


@pytest.mark.parametrize("took", ["61.416250265s", "61.840325s", "401.25ms", "403s"])
def test_a_duration_is_no_status_and_a_buckets_name_no_region(took):
    pytest.importorskip("obstore")
    told = "s3://my-region-bucket/file: cannot be read: the service does not answer"
    with pytest.raises(StoreError, match=told), explaining("s3://my-region-bucket/file", "be read"):
        raise RuntimeError(SILENCE.format(took))


def test_another_region_is_named():
    pytest.importorskip("obstore")
    text = "Received redirect without LOCATION, this normally indicates an incorrectly configured region"
    with pytest.raises(StoreError, match="set AWS_DEFAULT_REGION"), explaining("s3://b/file", "be read"):
        raise RuntimeError(text)
