"""An S3 client that is not the product's (boto3), to fill a bucket as other programs do and to compare it with files.

    other_client.py fill  --endpoint URL --bucket B --prefix P --data-dir D [--cutoff BYTES] [--all]
    other_client.py check --endpoint URL --bucket B --prefix P --data-dir D
    other_client.py list  --endpoint URL --bucket B --prefix P

The keys of the account are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. All print JSON.

fill   puts the archives below D/data (with --all every file below D) under P, with the metadata that rclone leaves: the
       modification time, and for a file of BYTES or more, which goes in parts of 5 MiB, its MD5 in base64.
check  compares, as `rclone check` does, every archive below D/data with the bucket, by size and MD5, and every object
       under P with the files; manifests are not looked at. What has no MD5 as its ETag is fetched for it.
list   says of every archive and manifest under P all that the bucket says of it; of other objects what a list says.
"""
import argparse
import base64
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

PART_BYTES = 5 << 20
TRANSFERS = 8


def connect(options):
    return boto3.client(
        "s3",
        endpoint_url=options.endpoint,
        region_name="auto",
        config=Config(
            request_checksum_calculation="when_required",
            max_pool_connections=TRANSFERS,
            s3={"addressing_style": "path"},
        ),
    )


def files(options, whole):
    root = options.data_dir if whole else options.data_dir / "data"
    for path in sorted(root.rglob("*")):
        if path.is_file() and (whole or path.suffix == ".zip"):
            yield path, f"{options.prefix}/{path.relative_to(options.data_dir).as_posix()}"


def objects(client, options):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=options.bucket, Prefix=options.prefix + "/")
    for page in pages:
        yield from page.get("Contents", [])


def fill(client, options):
    def put(file):
        path, key = file
        content = path.read_bytes()
        metadata = {"mtime": f"{path.stat().st_mtime:.9f}"}
        if len(content) < options.cutoff:
            client.put_object(
                Bucket=options.bucket, Key=key, Body=content, Metadata=metadata, ContentType="application/zip"
            )
            return
        metadata["md5chksum"] = base64.b64encode(hashlib.md5(content).digest()).decode()
        client.upload_file(
            str(path), options.bucket, key,
            ExtraArgs={"Metadata": metadata, "ContentType": "application/zip"},
            Config=TransferConfig(multipart_threshold=options.cutoff, multipart_chunksize=PART_BYTES),
        )

    with ThreadPoolExecutor(TRANSFERS) as pool:
        return {"files": len(list(pool.map(put, files(options, options.all))))}


def check(client, options):
    there = {item["Key"]: item for item in objects(client, options) if "/_markers/" not in item["Key"]}
    report = {"same": 0, "missing": [], "differ": [], "extra": []}
    for path, key in files(options, False):
        item = there.pop(key, None)
        if item is None:
            report["missing"].append(key)
            continue
        content = path.read_bytes()
        # Not every server says it in a list.
        head = client.head_object(Bucket=options.bucket, Key=key)
        md5 = head["ETag"].strip('"')
        if "-" in md5:
            body = client.get_object(Bucket=options.bucket, Key=key)["Body"].read()
            md5 = hashlib.md5(body).hexdigest()
        if head["ContentLength"] == item["Size"] == len(content) and md5 == hashlib.md5(content).hexdigest():
            report["same"] += 1
        else:
            report["differ"].append(key)
    report["extra"] = sorted(there)
    return report


def describe(client, options):
    def head(item):
        ours = any(folder in item["Key"] for folder in ("/data/", "/_markers/"))
        none = {"ETag": "", "Metadata": {}}
        head = client.head_object(Bucket=options.bucket, Key=item["Key"]) if ours else none
        return {
            "key": item["Key"],
            "size": item["Size"],
            "etag": head["ETag"].strip('"'),
            "modified": item["LastModified"].isoformat(),
            "type": head.get("ContentType"),
            "metadata": head["Metadata"],
        }

    with ThreadPoolExecutor(TRANSFERS) as pool:
        return list(pool.map(head, objects(client, options)))


def main():
    arguments = argparse.ArgumentParser(description="an S3 client that is not the product's")
    arguments.add_argument("command", choices=["fill", "check", "list"])
    arguments.add_argument("--endpoint", required=True)
    arguments.add_argument("--bucket", required=True)
    arguments.add_argument("--prefix", required=True)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--cutoff", type=int, default=200 << 20)
    arguments.add_argument("--all", action="store_true")
    options = arguments.parse_args()
    # A proxy of the machine's, or its own settings, are not what the tests are about.
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "AWS_PROFILE"]:
        del os.environ[name]
    run = {"fill": fill, "check": check, "list": describe}[options.command]
    json.dump(run(connect(options), options), sys.stdout)


if __name__ == "__main__":
    main()
