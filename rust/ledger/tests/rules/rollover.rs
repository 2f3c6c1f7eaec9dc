//! R8 and R14 together: a reservation that lives across the end of a period, where ends are odd.

use bursar_ledger::{Period, PeriodKind, Unit};
use jiff::Timestamp;

use crate::common::{DAY, World, pattern, settings, tokens};

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// The last moments of periods in Berlin, each with the first moment of the next.
const ENDS: [(PeriodKind, &str, &str); 14] = [
    // 29 March 2026 has 23 hours: two o'clock follows upon one o'clock at once.
    (PeriodKind::Hour, "2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00"),
    (PeriodKind::Day, "2026-03-28T12:00+01:00", "2026-03-29T00:00+01:00"),
    (PeriodKind::Day, "2026-03-29T12:00+02:00", "2026-03-30T00:00+02:00"),
    (PeriodKind::Week, "2026-03-29T12:00+02:00", "2026-03-30T00:00+02:00"),
    // 25 October has 25 hours: the one from two to three comes twice, and is two windows.
    (PeriodKind::Hour, "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00"),
    (PeriodKind::Hour, "2026-10-25T02:30+01:00", "2026-10-25T03:00+01:00"),
    (PeriodKind::Day, "2026-10-25T01:00+02:00", "2026-10-26T00:00+01:00"),
    (PeriodKind::Week, "2026-10-25T01:00+02:00", "2026-10-26T00:00+01:00"),
    (PeriodKind::Month, "2026-01-31T12:00+01:00", "2026-02-01T00:00+01:00"),
    (PeriodKind::Month, "2026-02-28T12:00+01:00", "2026-03-01T00:00+01:00"),
    (PeriodKind::Month, "2028-02-29T12:00+01:00", "2028-03-01T00:00+01:00"),
    (PeriodKind::Month, "2026-03-15T12:00+01:00", "2026-04-01T00:00+02:00"),
    (PeriodKind::Month, "2026-10-15T12:00+02:00", "2026-11-01T00:00+01:00"),
    (PeriodKind::Month, "2026-12-31T12:00+01:00", "2027-01-01T00:00+01:00"),
];

/// A reservation is made in one period, topped up and committed in the next. Then the wall clock
/// steps back by a day, once with the ledger as it is and once with the one that recovery makes.
#[test]
fn r08_r14_a_reservation_lives_across_the_end_of_every_kind_of_period() {
    for (kind, inside, end) in ENDS {
        let world = World::new();
        let end = ms(end);
        world.set_wall(ms(inside));
        world.limit("a", Unit::Tokens, Period::calendar(kind, "Europe/Berlin"), 100);
        let id = world.held("a/b", 80);
        world.debit(id, 30);
        let old = world.ledger.account("a", world.now()).unwrap().balances[0].window.clone();

        world.set_wall(end - 1);
        world.record("a/c", tokens(20)).unwrap();
        assert_eq!(world.standing("a", Unit::Tokens), (100, 50, 50, 0), "{kind:?} until {end}");
        let refusal = world.hold("a/b", tokens(1)).unwrap_err();
        assert_eq!((refusal.shortfall, refusal.reset_ms), (1, Some(end)));

        world.set_wall(end);
        assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100), "{kind:?} from {end}");
        world.debit(id, 60);
        assert_eq!(world.tokens_of("a"), (0, 0), "what was admitted then is spent there");
        world.extend(id, 110);
        assert_eq!(world.tokens_of("a"), (30, 0));
        world.commit(id, 115);
        let standing = old.standing();
        assert_eq!((standing.held, standing.spent, standing.remaining), (0, 100, 0));

        world.set_wall(end - DAY);
        assert_that_the_present_window_stands(&world);
        let any = ["a", "a/**"].map(|text| pattern(text, Vec::new()));
        let recovered = world.replayed(settings(any.into()), &world.tape.records());
        assert_that_the_present_window_stands(&recovered);
    }
}

/// 35 of 100 are spent in the new window, and a clock of the day before does not open another.
fn assert_that_the_present_window_stands(world: &World) {
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 35, 65));
    assert_eq!(world.hold("a/b", tokens(66)).unwrap_err().shortfall, 1);
    let fits = world.held("a/b", 65);
    world.release(fits);
    assert_eq!(world.tokens_of("a"), (0, 35));
}
