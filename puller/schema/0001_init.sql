CREATE TABLE IF NOT EXISTS {database}.klines (
    exchange LowCardinality(String),
    market LowCardinality(String),
    dataset LowCardinality(String),
    interval LowCardinality(String),
    symbol LowCardinality(String),
    open_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    close_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    open Decimal(18, 8),
    high Decimal(18, 8),
    low Decimal(18, 8),
    close Decimal(18, 8),
    volume Decimal(38, 8),
    quote_volume Decimal(38, 8),
    taker_buy_volume Decimal(38, 8),
    taker_buy_quote_volume Decimal(38, 8),
    trades UInt64,
    version UInt64 COMMENT 'generated_at of the archive that brought the row, in ms: even for a day, odd for a month',
    is_deleted UInt8 COMMENT '1: a correction took the row away'
)
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(open_time)
ORDER BY (exchange, market, dataset, interval, symbol, open_time)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
COMMENT 'candles; read with FINAL, or read klines_latest';

CREATE TABLE IF NOT EXISTS {database}.archives (
    exchange LowCardinality(String),
    market LowCardinality(String),
    dataset LowCardinality(String),
    interval LowCardinality(String),
    period String,
    symbol LowCardinality(String),
    object_key String,
    sha256 String,
    size UInt64 COMMENT 'bytes of the archive',
    generated_at DateTime64(3, 'UTC'),
    rows UInt64,
    expected_rows UInt64 COMMENT 'rows the interval implies for the period',
    first_open_time DateTime64(6, 'UTC'),
    last_open_time DateTime64(6, 'UTC'),
    missing_rows UInt64 COMMENT 'expected but not in the archive: the exchange was down, or published early',
    rows_hash UInt64 COMMENT 'sum of cityHash64 over the rows, as read back',
    loaded_at DateTime64(3, 'UTC'),
    marker_id String,
    worker String
)
ENGINE = ReplacingMergeTree(generated_at)
ORDER BY (exchange, market, dataset, interval, period, symbol, object_key)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
COMMENT 'one row per archive loaded and read back; read with FINAL';

CREATE TABLE IF NOT EXISTS {database}.ingest_log (
    finished_at DateTime64(3, 'UTC'),
    started_at DateTime64(3, 'UTC'),
    destination LowCardinality(String),
    exchange LowCardinality(String),
    market LowCardinality(String),
    dataset LowCardinality(String),
    interval LowCardinality(String),
    period String,
    revision String,
    marker_id String,
    stream_sequence UInt64,
    attempt UInt32,
    worker String,
    outcome LowCardinality(String) COMMENT 'loaded, skipped, superseded, too_old, cancelled, retry, dead_letter, dead_retried, dead_discarded',
    error_class LowCardinality(String),
    error String,
    archives UInt64 COMMENT 'objects the marker names',
    archives_loaded UInt64,
    archives_skipped UInt64 COMMENT 'loaded and verified before',
    archives_failed UInt64,
    rows UInt64,
    bytes UInt64 COMMENT 'bytes fetched',
    fetch_ms UInt64,
    decode_ms UInt64,
    insert_ms UInt64,
    read_back_ms UInt64,
    trace_id String
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(finished_at)
ORDER BY finished_at
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
COMMENT 'one row per finished attempt';

CREATE OR REPLACE VIEW {database}.klines_latest AS
SELECT
    exchange, market, dataset, interval, symbol, open_time, close_time, open, high, low, close,
    volume, quote_volume, taker_buy_volume, taker_buy_quote_volume, trades, version
FROM {database}.klines FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.coverage AS
WITH
    loaded AS (
        SELECT
            exchange, market, dataset, interval, symbol, period, rows, expected_rows, missing_rows, loaded_at,
            toDate(if(length(period) = 7, concat(period, '-01'), period)) AS first_day,
            if(length(period) = 7, toLastDayOfMonth(first_day), first_day) AS last_day
        FROM {database}.archives FINAL
    ),
    covered AS (
        SELECT
            exchange, market, dataset, interval, symbol,
            arrayDistinct(arrayFlatten(groupArray(
                arrayMap(n -> addDays(first_day, n), range(toUInt32(dateDiff('day', first_day, last_day) + 1)))
            ))) AS days
        FROM loaded
        GROUP BY exchange, market, dataset, interval, symbol
    )
SELECT
    exchange, market, dataset, interval, period, symbol, rows, expected_rows, missing_rows,
    if(missing_rows = 0, 'complete', 'partial') AS state,
    loaded_at
FROM loaded
UNION ALL
SELECT
    exchange, market, dataset, interval, toString(missing_day) AS period, symbol,
    toUInt64(0) AS rows, toUInt64(0) AS expected_rows, toUInt64(0) AS missing_rows,
    'missing' AS state,
    toDateTime64(0, 3, 'UTC') AS loaded_at
FROM covered
ARRAY JOIN arrayFilter(
    day -> NOT has(days, day),
    arrayMap(n -> addDays(arrayMin(days), n), range(toUInt32(dateDiff('day', arrayMin(days), arrayMax(days)) + 1)))
) AS missing_day;
