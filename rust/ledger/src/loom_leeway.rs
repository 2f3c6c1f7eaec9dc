//! Every interleaving of drawing from the leeway with its being taken back and given anew.
//!
//! Run with `make test-loom`.

use std::sync::Arc;

use loom::thread;

use crate::leeway::{Holds, Leeway};
use crate::unit::{Amounts, Unit};

const HERE: Holds = Holds { chain: 7, limits: 3 };
const TOKENS: u8 = 1;

fn tokens(amount: i64) -> Amounts {
    Amounts::of(Unit::Tokens, amount)
}

/// Draws 3 of 5 that are given for `HERE`, while they are taken back, given for `then`, and taken back
/// again. Returns how the draw went, and what was drawn by either taking back.
fn draw_while_it_is_given_anew(then: Holds) -> (Result<(), u8>, [i64; 2]) {
    let leeway = Arc::new(Leeway::none());
    leeway.give(&tokens(5), &HERE, 100);
    let same = Arc::clone(&leeway);
    let draws = thread::spawn(move || same.draw(|_| 3, TOKENS, &HERE, 0));
    let before = leeway.take_back(&tokens(5));
    leeway.give(&tokens(4), &then, 200);
    let went = draws.join().unwrap();
    let after = leeway.take_back(&tokens(4));
    (went, [before, after].map(|drawn| drawn.get(Unit::Tokens)))
}

#[test]
fn loom_what_is_drawn_is_counted_once() {
    loom::model(|| {
        let (went, drawn) = draw_while_it_is_given_anew(HERE);
        let is_counted = went != Err(TOKENS);
        assert_eq!(drawn.iter().sum::<i64>(), if is_counted { 3 } else { 0 });
    });
}

#[test]
fn loom_who_draws_what_was_given_for_others_has_to_look() {
    for then in [Holds { limits: 4, ..HERE }, Holds { chain: 8, ..HERE }] {
        loom::model(move || {
            let (went, drawn) = draw_while_it_is_given_anew(then);
            match went {
                Ok(()) => assert_eq!(drawn, [3, 0]),
                Err(short) => assert_eq!(drawn.iter().sum::<i64>(), if short == 0 { 3 } else { 0 }),
            }
        });
    }
}
