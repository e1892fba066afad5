use std::fs;

use super::*;
use crate::local::staged_delete;

fn write(data_dir: &Path, path: &str) {
    let path = data_dir.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, "x").expect("written");
}

fn unit(text: &str) -> Unit {
    text.parse().expect(text)
}

fn day(n: i64) -> jiff::civil::Date {
    jiff::civil::date(2026, 1, 1).saturating_add(jiff::Span::new().days(n))
}

#[test]
fn archives_are_found_whether_asked_by_name_listed_or_looked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    for symbol in ["ETHUSDT", "BTCUSDT", "币安人生USDT"] {
        for n in 0..40 {
            write(dir.path(), &format!("data/spot/daily/klines/{symbol}/1h/{symbol}-1h-{}.zip", day(n)));
        }
    }
    let folder = "data/spot/daily/klines/BTCUSDT/1h";
    for other in ["BTCUSDT-1h-2026-01-01.zip.CHECKSUM", "BTCUSDT-1h-2026-01-01.zip.tmp", "readme.txt"] {
        write(dir.path(), &format!("{folder}/{other}"));
    }
    write(dir.path(), "data/spot/daily/klines/NO NAME/1h/NO NAME-1h-2026-01-01.zip");
    fs::create_dir(dir.path().join(folder).join("BTCUSDT-1h-2026-06-01.zip")).expect("made");
    std::os::unix::fs::symlink("loop", dir.path().join("data/spot/daily/klines/loop")).expect("linked");
    std::os::unix::fs::symlink("..", dir.path().join("data/spot/daily/klines/UP")).expect("linked");

    let (rule, events, stop) = (CompletenessRule::default(), FileEvents::default(), CancellationToken::new());
    let walk = Walk { data_dir: dir.path(), rule: &rule, events: &events, folders: None, puts_back: true, stop: &stop };
    let days = |n: i64| (0..n).map(|n| unit(&format!("binance/spot/klines/1h/{}", day(n)))).collect::<Vec<_>>();
    let everything = walk.everything(vec![], &UnitFilter::default());
    assert_eq!(everything.problems.len(), 2, "{:?}", everything.problems);
    // A folder takes the place of an archive: the unit is there, and cannot be whole.
    let (first, seen) = &everything.units[0];
    assert_eq!((first, seen.archives), (&unit("binance/spot/klines/1h/2026-06-01"), 0));
    assert!(seen.unreadable[0].ends_with("is no regular file"), "{:?}", seen.unreadable);
    assert_eq!(everything.units[1].0, unit(&format!("binance/spot/klines/1h/{}", day(39))));
    let all: HashMap<Unit, Seen> = everything.units.into_iter().filter(|(_, seen)| seen.archives > 0).collect();
    assert_eq!(all.len(), 40);
    for n in [2, 40] {
        let found = walk.units(days(n));
        assert_eq!(found.units.len(), usize::try_from(n).expect("small"));
        for (unit, seen) in &found.units {
            assert_eq!((seen.archives, seen.digest), (3, all[unit].digest), "{unit}");
            assert_eq!(seen.digest, crate::local::scan::list(dir.path(), unit.clone(), true).digest());
            assert!(seen.unreadable.is_empty(), "{:?}", seen.unreadable);
        }
    }
    let none = walk.units(vec![unit("binance/spot/klines/1h/2026-06-01"), unit("binance/um/klines/1h/2026-01-01")]);
    let found: Vec<_> = none.units.iter().map(|(_, seen)| (seen.archives, seen.unreadable.len())).collect();
    assert_eq!(found, [(0, 1), (0, 0)], "{none:?}");
}

#[test]
fn what_a_cleanup_left_aside_gets_its_name_back() {
    let (rule, events, stop) = (CompletenessRule::default(), FileEvents::default(), CancellationToken::new());
    let day = unit("binance/spot/klines/1h/2026-01-01");
    let archive = "data/spot/daily/klines/A/1h/A-1h-2026-01-01.zip";
    for by_name in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &format!("{archive}{}", staged_delete::ENDING));
        let walk_again = |puts_back| {
            let walk =
                Walk { data_dir: dir.path(), rule: &rule, events: &events, folders: None, puts_back, stop: &stop };
            let found =
                if by_name { walk.units(vec![day.clone()]) } else { walk.everything(vec![], &UnitFilter::default()) };
            found.units.iter().map(|(_, seen)| seen.archives).sum::<usize>()
        };
        assert_eq!(walk_again(false), 0);
        assert!(!dir.path().join(archive).exists(), "a dry run changes nothing");
        walk_again(true);
        assert_eq!(walk_again(true), 1, "by name: {by_name}");
    }
}

#[test]
fn a_link_to_nowhere_is_told_of_its_unit() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("data/spot/daily/klines/BTCUSDT/1h");
    fs::create_dir_all(&folder).expect("made");
    std::os::unix::fs::symlink("gone", folder.join("BTCUSDT-1h-2026-01-01.zip")).expect("linked");
    let (rule, events, stop) = (CompletenessRule::default(), FileEvents::default(), CancellationToken::new());
    let walk = Walk { data_dir: dir.path(), rule: &rule, events: &events, folders: None, puts_back: true, stop: &stop };
    for found in
        [walk.units(vec![unit("binance/spot/klines/1h/2026-01-01")]), walk.everything(vec![], &UnitFilter::default())]
    {
        assert_eq!(found.units[0].1.unreadable.len(), 1, "{found:?}");
    }
}
