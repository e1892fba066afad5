CREATE OR REPLACE VIEW {database}.klines_latest AS
SELECT
    exchange, market, dataset, interval, symbol, open_time, close_time, open, high, low, close,
    volume, quote_volume, taker_buy_volume, taker_buy_quote_volume, trades,
    bitAnd(klines.version, 281474976710655) AS version
FROM {database}.klines FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;

ALTER TABLE {database}.klines
    COMMENT COLUMN version 'low 48 bits: generated_at of the archive that brought the row, in ms, even for a day, odd for a month; high 16 bits: rank epoch, above 0 where a correction wrote what is to be shown',
    COMMENT COLUMN is_deleted '1: no current archive has the row any more';
