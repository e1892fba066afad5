"""Uploads a folder as other tools do: rclone copy with 8 transfers and checksums, or boto3 on 8 threads."""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import storage


def with_boto3(job, source):
    """What `aws s3 sync` does: list, and put what is not there in the same size."""
    s3 = storage.client(job)
    present = storage.keys_with_sizes(s3, job)

    def put(path):
        key = f"{job['prefix']}/data/{path.relative_to(source)}"
        if present.get(key) != path.stat().st_size:
            s3.put_object(Bucket=job["bucket"], Key=key, Body=path.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, source.rglob("*.zip")))


def main():
    job = storage.read_job()
    source = Path(job["folder"]) / "data"
    if job["tool"] == "rclone":
        storage.rclone_copy(job, str(source), storage.in_bucket(job), "--checksum", "--include", "*.zip")
    else:
        with_boto3(job, source)


main()
