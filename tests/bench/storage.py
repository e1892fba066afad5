"""What the Python peers share: their job, the bucket by boto3, and rclone's settings."""
import json
import os
import sys


def read_job():
    """The job is a file: credentials do not belong into arguments."""
    with open(sys.argv[1]) as file:
        return json.load(file)


def client(job):
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=job["endpoint"], region_name="auto", aws_access_key_id=job["access_key_id"],
        aws_secret_access_key=job["secret_access_key"],
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=8,
                      request_checksum_calculation="when_required", response_checksum_validation="when_required"),
    )


def keys_with_sizes(s3, job):
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=job["bucket"], Prefix=job["prefix"] + "/data/"):
        for entry in page.get("Contents", []):
            found[entry["Key"]] = entry["Size"]
    return found


def rclone_environment(job):
    # rclone's S3 library takes all of AWS's variables for its own, and fails on some.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    settings = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": job["endpoint"], "REGION": "auto", "FORCE_PATH_STYLE": "true",
        "ACCESS_KEY_ID": job["access_key_id"], "SECRET_ACCESS_KEY": job["secret_access_key"], "NO_CHECK_BUCKET": "true",
    }
    environment["RCLONE_CONFIG"] = "/dev/null"
    return {**environment, **{f"RCLONE_CONFIG_PEER_{name}": value for name, value in settings.items()}}


def rclone_copy(job, source, target, *options):
    import subprocess

    command = [job["rclone"], "copy", source, target, "--transfers", "8", *options]
    done = subprocess.run(command, env=rclone_environment(job), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"rclone: {done.stderr}")


def in_bucket(job):
    # The slash at the end keeps rclone from asking for the folder as an object.
    return f"peer:{job['bucket']}/{job['prefix']}/data/"
