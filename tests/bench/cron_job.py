"""The cron job: copy the archives, read them with zipfile, csv and Decimal, insert with clickhouse-connect.

One insert a file, as cron jobs do, or one a unit (job["insert_per"]). Decimals are exact in both. Settings are the server's
defaults, which a cron job does not know to change; with job["tuned"], those that every other contender uses.
"""
import csv
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import groupby
from pathlib import Path

import clickhouse_connect

import storage

COLUMNS = ["exchange", "market", "dataset", "interval", "symbol", "open_time", "close_time", "open", "high", "low",
           "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume", "trades", "version"]
TUNED = {"async_insert": 0, "insert_deduplicate": 0, "optimize_on_insert": 0, "materialize_statistics_on_insert": 0}


def copy(job, target):
    if job["rclone"]:
        storage.rclone_copy(job, storage.in_bucket(job), str(target))
        return
    s3 = storage.client(job)

    def fetch(key):
        path = target / key.removeprefix(job["prefix"] + "/data/")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(job["bucket"], key, str(path))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, storage.keys_with_sizes(s3, job)))


def unit_of(path):
    """Interval and period."""
    return path.parent.name, path.stem.split("-", 2)[2]


def rows(path):
    symbol, interval, _ = path.stem.split("-", 2)
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        for r in csv.reader(io.TextIOWrapper(member, "ascii")):
            yield ("binance", "spot", "klines", interval, symbol, int(r[0]), int(r[6]), Decimal(r[1]), Decimal(r[2]),
                   Decimal(r[3]), Decimal(r[4]), Decimal(r[5]), Decimal(r[7]), Decimal(r[9]), Decimal(r[10]), int(r[8]), 1)


def insert(clickhouse, batch, settings):
    columns = list(zip(*batch))
    clickhouse.insert("klines", columns, column_names=COLUMNS, column_oriented=True, settings=settings)


def main():
    job = storage.read_job()
    target = Path(job["folder"])
    copy(job, target)
    clickhouse = clickhouse_connect.get_client(
        host=job["clickhouse"]["host"], port=job["clickhouse"]["port"], username=job["clickhouse"]["user"],
        password=job["clickhouse"]["password"], database=job["database"], compress=False)
    settings = TUNED if job["tuned"] else {}
    archives = sorted(target.rglob("*.zip"), key=lambda path: (unit_of(path), path.name))
    for _, unit in groupby(archives, unit_of):
        batch = []
        for path in unit:
            batch.extend(rows(path))
            if job["insert_per"] == "file":
                insert(clickhouse, batch, settings)
                batch = []
        if batch:
            insert(clickhouse, batch, settings)


main()
