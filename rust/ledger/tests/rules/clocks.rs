//! R14: calendar windows, rolling windows, and clocks that step back.

use bursar_ledger::{Calendar, Period, PeriodError, PeriodKind, Unit};
use jiff::Timestamp;

use crate::common::{DAY, HOUR, SECOND, World, tokens};

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// Checks that the window of `kind` which contains each of `inside` is exactly `bounds`.
fn assert_window(kind: PeriodKind, zone: &str, inside: &[&str], bounds: (&str, &str)) {
    let calendar = Calendar::new(&Period::calendar(kind, zone)).unwrap();
    let expected = (ms(bounds.0), ms(bounds.1));
    for at in inside {
        assert_eq!(calendar.bounds(ms(at)), expected, "{kind:?} {zone} at {at}");
    }
    assert_eq!(calendar.bounds(expected.0), expected, "its first millisecond");
    assert_eq!(calendar.bounds(expected.1 - 1), expected, "its last millisecond");
    assert_eq!(calendar.bounds(expected.1).0, expected.1, "the next one follows at once");
}

#[test]
fn r14_days_weeks_and_months_in_berlin_across_both_clock_changes() {
    use PeriodKind::{Day, Hour, Month, Week};
    let check =
        |kind, inside: &[&str], bounds| assert_window(kind, "Europe/Berlin", inside, bounds);
    // 29 March 2026 has 23 hours, 25 October 25.
    check(Day, &["2026-03-29T12:00+02:00"], ("2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"));
    check(
        Day,
        &["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"],
        ("2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
    );
    check(
        Hour,
        &["2026-03-29T01:59:59+01:00"],
        ("2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"),
    );
    check(Hour, &["2026-10-25T02:30+02:00"], ("2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"));
    check(Hour, &["2026-10-25T02:30+01:00"], ("2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"));
    check(
        Week,
        &["2026-03-29T23:59:59+02:00"],
        ("2026-03-23T00:00+01:00", "2026-03-30T00:00+02:00"),
    );
    check(
        Month,
        &["2026-03-31T23:59:59+02:00"],
        ("2026-03-01T00:00+01:00", "2026-04-01T00:00+02:00"),
    );
    check(
        Month,
        &["2028-02-29T23:59:59+01:00"],
        ("2028-02-01T00:00+01:00", "2028-03-01T00:00+01:00"),
    );
    check(
        Month,
        &["2026-12-31T23:59:59+01:00"],
        ("2026-12-01T00:00+01:00", "2027-01-01T00:00+01:00"),
    );
    check(Week, &["2027-01-01T00:00+01:00"], ("2026-12-28T00:00+01:00", "2027-01-04T00:00+01:00"));
}

#[test]
fn r14_zones_with_odd_offsets_missing_midnights_and_missing_days() {
    use PeriodKind::{Day, Hour, Month};
    assert_window(
        Hour,
        "Asia/Kolkata",
        &["2026-05-01T10:15+05:30"],
        ("2026-05-01T10:00+05:30", "2026-05-01T11:00+05:30"),
    );
    assert_window(
        Month,
        "Asia/Kolkata",
        &["2026-04-30T23:59+05:30"],
        ("2026-04-01T00:00+05:30", "2026-05-01T00:00+05:30"),
    );
    // In São Paulo the day of the change began at one o'clock, and the day before it ended had 25
    // hours.
    assert_window(
        Day,
        "America/Sao_Paulo",
        &["2018-11-04T12:00-02:00"],
        ("2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"),
    );
    assert_window(
        Day,
        "America/Sao_Paulo",
        &["2019-02-16T23:30-02:00", "2019-02-16T23:30-03:00"],
        ("2019-02-16T00:00-02:00", "2019-02-17T00:00-03:00"),
    );
    // Samoa skipped 30 December 2011.
    assert_window(
        Day,
        "Pacific/Apia",
        &["2011-12-29T23:59-10:00"],
        ("2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00"),
    );
    assert_window(
        Month,
        "Pacific/Apia",
        &["2011-12-31T00:00+14:00"],
        ("2011-12-01T00:00-10:00", "2012-01-01T00:00+14:00"),
    );
    assert_window(
        Day,
        "Australia/Lord_Howe",
        &["2026-10-04T12:00+11:00"],
        ("2026-10-04T00:00+10:30", "2026-10-05T00:00+11:00"),
    );
}

/// In Lord Howe the clock changes by half an hour, in the middle of an hour of one side.
#[test]
fn r14_windows_never_overlap_where_the_offset_changes_within_an_hour() {
    for day in ["2026-10-03T14:00Z", "2026-04-04T13:30Z"] {
        let world = World::new();
        world.set_wall(ms(day));
        let hourly = Period::calendar(PeriodKind::Hour, "Australia/Lord_Howe");
        world.limit("a", Unit::Tokens, hourly, 10);
        let mut end = None;
        for _ in 0..24 {
            world.wait(10 * 60 * SECOND);
            let window = world.ledger.account("a", world.now()).unwrap().balances[0].window.clone();
            let now = world.now().wall_ms;
            assert!(window.start_ms <= now && now < window.end_ms);
            assert!(window.end_ms - window.start_ms <= HOUR);
            if let Some((id, end_ms)) = end
                && id != window.id
            {
                assert_eq!(window.start_ms, end_ms);
            }
            end = Some((window.id, window.end_ms));
        }
    }
}

#[test]
fn r14_unknown_zones_and_lengths_out_of_bounds_are_errors() {
    let zone = Period::calendar(PeriodKind::Day, "Mars/Olympus");
    assert_eq!(Calendar::new(&zone).unwrap_err(), PeriodError::TimeZone("Mars/Olympus".into()));
    for length_ms in [i64::MIN, 0, 999, 366 * DAY + 1] {
        let rolling = Calendar::new(&Period::rolling(length_ms));
        assert_eq!(rolling.unwrap_err(), PeriodError::Length(length_ms));
    }
    for at in [i64::MIN, i64::MAX, 253_402_300_799_999] {
        for kind in [PeriodKind::Hour, PeriodKind::Day, PeriodKind::Week, PeriodKind::Month] {
            let (start, end) = Calendar::new(&Period::calendar(kind, "UTC")).unwrap().bounds(at);
            assert!(start <= at && (at < end || at == i64::MAX), "{kind:?} at {at}");
        }
    }
}

#[test]
fn r14_a_clock_that_steps_back_never_reopens_a_window() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Day, "UTC"), 100);
    world.record("a", tokens(100)).unwrap();
    world.wait(DAY);
    world.record("a", tokens(60)).unwrap();
    let window =
        |world: &World| world.ledger.account("a", world.now()).unwrap().balances[0].window.id;
    let present = window(&world);
    for back in [SECOND, DAY, 30 * DAY] {
        world.set_wall(world.now().wall_ms - back);
        assert_eq!(window(&world), present);
        assert!(world.hold("a", tokens(41)).is_err());
        let id = world.held("a", 40);
        world.release(id);
        assert_eq!(world.tokens_of("a"), (0, 60));
    }
}

/// 100 tokens in any 64 seconds, which have a bucket each.
fn rolling() -> World {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::rolling(64 * SECOND), 100);
    world
}

#[test]
fn r14_a_rolling_window_frees_what_has_left_and_not_before() {
    let world = rolling();
    for _ in 0..10 {
        world.record("a", tokens(10)).unwrap();
        world.wait(SECOND);
    }
    assert!(world.hold("a", tokens(1)).is_err());
    world.wait(54 * SECOND);
    assert!(world.hold("a", tokens(1)).is_err(), "64 s have passed since the first ten, not more");
    for step in 1..=10 {
        world.wait(SECOND);
        assert_eq!(world.tokens_of("a"), (0, 100 - 10 * step), "one bucket later at most");
    }
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
}

#[test]
fn r14_a_rolling_window_survives_long_silence_and_big_jumps() {
    let world = rolling();
    let id = world.held("a", 50);
    world.debit(id, 30);
    for jump in [65 * SECOND, 66 * SECOND, 67 * SECOND, DAY, 400 * DAY] {
        world.wait(jump);
        world.record("a", tokens(20)).unwrap();
        assert_eq!(world.standing("a", Unit::Tokens), (100, 20, 20, 60), "after {jump}");
    }
    world.release(id);
}

/// A correction long after: what has left the window by itself does not come back twice.
#[test]
fn r14_a_correction_gives_nothing_back_that_has_left_a_rolling_window() {
    let world = rolling();
    let id = world.held("a", 80);
    world.debit(id, 80);
    world.release(id);
    world.wait(40 * SECOND);
    world.record("a", tokens(20)).unwrap();
    world.wait(30 * SECOND);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 20, 80));
    world.commit(id, 0);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 20, 80), "the 20 are another's");
    world.wait(200 * SECOND);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
}

/// One that spent both before and after what has left: nothing of others' may come back, so its own
/// stays until it leaves.
#[test]
fn r14_what_a_long_hold_spent_in_a_rolling_window_leaves_by_itself() {
    let world = rolling();
    let id = world.held("a", 60);
    world.debit(id, 20);
    world.wait(70 * SECOND);
    world.record("a", tokens(30)).unwrap();
    world.debit(id, 60);
    world.commit(id, 0);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 70, 30));
    world.wait(66 * SECOND);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
}

#[test]
fn r14_a_correction_soon_after_frees_a_rolling_window() {
    let world = rolling();
    let id = world.held("a", 80);
    world.debit(id, 80);
    world.wait(10 * SECOND);
    world.commit(id, 30);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 30, 70));
    world.wait(56 * SECOND);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
}

#[test]
fn r14_a_rolling_window_crosses_anew_after_it_has_fallen_below() {
    let world = World::new();
    let mut budget = crate::common::stepped(100);
    budget.period = Period::rolling(64 * SECOND);
    world.set("a", budget).unwrap();
    for _ in 0..3 {
        world.record("a", tokens(55)).unwrap();
        world.record("a", tokens(5)).unwrap();
        world.wait(100 * SECOND);
    }
    assert_eq!(world.tape.crossings(), [500, 500, 500]);
}

#[test]
fn r14_a_rolling_window_crosses_anew_each_threshold_that_it_has_fallen_below() {
    let world = World::new();
    let mut budget = crate::common::stepped(100);
    budget.period = Period::rolling(64 * SECOND);
    world.set("a", budget).unwrap();
    world.record("a", tokens(10)).unwrap();
    world.wait(10 * SECOND);
    world.record("a", tokens(85)).unwrap();
    assert_eq!(world.tape.crossings(), [500, 800, 900]);
    world.wait(56 * SECOND);
    world.record("a", tokens(5)).unwrap();
    assert_eq!(world.tape.crossings(), [500, 800, 900], "at 90 of 100 again, from 85");
    world.wait(20 * SECOND);
    world.record("a", tokens(25)).unwrap();
    world.wait(44 * SECOND);
    world.record("a", tokens(65)).unwrap();
    assert_eq!(world.tape.crossings(), [500, 800, 900, 500, 800, 900], "from 25");
}

#[test]
fn r17_a_rolling_window_that_is_kept_full_is_told_of_once() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::rolling(64 * SECOND), 64);
    for _ in 0..300 {
        let _refused = world.record("a", tokens(1));
        world.wait(SECOND);
    }
    assert_eq!(world.standing("a", Unit::Tokens).2, 64, "what leaves is spent again");
    assert_eq!(world.tape.crossings(), [1_000]);
}

#[test]
fn r17_a_raised_limit_of_a_rolling_window_is_told_of_when_it_is_spent() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::rolling(64 * SECOND), 100);
    world.record("a", tokens(100)).unwrap();
    world.limit("a", Unit::Tokens, Period::rolling(64 * SECOND), 300);
    world.record("a", tokens(200)).unwrap();
    assert_eq!(world.tape.crossings(), [1_000, 1_000]);
}
