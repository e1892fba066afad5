-- A day is missing only where a candle would open on it: one of three days, Mondays, the first of a month. Which of three
-- the archives that are loaded tell.
CREATE OR REPLACE VIEW {database}.coverage AS
WITH
    loaded AS (
        SELECT
            exchange, market, dataset, interval, symbol, period, rows, expected_rows, missing_rows, loaded_at,
            toDate(if(length(period) = 7, concat(period, '-01'), period)) AS first_day,
            if(length(period) = 7, toLastDayOfMonth(first_day), first_day) AS last_day,
            modulo(toRelativeDayNum(toDate(first_open_time)), 3) AS phase
        FROM {database}.archives FINAL
        -- An archive that has moved to another prefix is in the ledger by both keys.
        ORDER BY loaded_at DESC
        LIMIT 1 BY exchange, market, dataset, interval, symbol, period
    ),
    covered AS (
        SELECT
            exchange, market, dataset, interval, symbol,
            anyIf(phase, rows > 0) AS phase,
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
    day -> NOT has(days, day)
        AND multiIf(
            interval = '3d', modulo(toRelativeDayNum(day), 3) = phase,
            interval = '1w', toDayOfWeek(day) = 1,
            interval = '1mo', toDayOfMonth(day) = 1,
            1
        ),
    arrayMap(n -> addDays(arrayMin(days), n), range(toUInt32(dateDiff('day', arrayMin(days), arrayMax(days)) + 1)))
) AS missing_day;
