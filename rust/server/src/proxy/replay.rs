//! Answers that are kept for their idempotency key: who repeats a call hears the same answer again, and
//! it is charged once.
//!
//! A call that was broken off is not kept: its repeat is a new call. What is kept is bounded by time
//! and size; a repeat that comes too late is a new call as well.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{HeaderMap, Response};
use parking_lot::Mutex;

use super::failure::Failure;
use super::reply::Reply;

/// The longest answer that is kept, and the most that all of them take.
pub(crate) const MAX_ANSWER_BYTES: usize = 4 << 20;
const MAX_BYTES: usize = 64 << 20;

/// What is kept, by the hash of account, path and key.
#[derive(Debug)]
pub(crate) struct Replays {
    kept: Mutex<Kept>,
    retention_ms: i64,
}

#[derive(Debug, Default)]
struct Kept {
    calls: HashMap<u128, Entry>,
    /// Those that have an answer, oldest first, with the time that it is kept until.
    order: VecDeque<(i64, u128)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    payload: u128,
    /// `None`: the call is under way.
    answer: Option<(HeaderMap, Bytes)>,
}

/// What a key leads to.
#[derive(Debug)]
pub(crate) enum Begun {
    New(Place),
    Again(Box<Response<Reply>>),
}

/// The place of a call that is under way; without an answer it is given up.
#[derive(Debug)]
pub(crate) struct Place {
    replays: Arc<Replays>,
    key: u128,
    answered: bool,
}

impl Replays {
    pub(crate) fn new(retention_ms: i64) -> Arc<Replays> {
        Arc::new(Replays { kept: Mutex::default(), retention_ms })
    }

    pub(crate) fn begin(
        self: &Arc<Replays>,
        key: u128,
        payload: u128,
        now_ms: i64,
    ) -> Result<Begun, Failure> {
        let mut kept = self.kept.lock();
        kept.expire(now_ms);
        match kept.calls.get(&key) {
            Some(entry) if entry.payload != payload => {
                Err(Failure::invalid("the idempotency key was used for another call"))
            }
            Some(Entry { answer: Some((headers, body)), .. }) => {
                let mut response = Response::new(Reply::whole(body.clone()));
                response.headers_mut().clone_from(headers);
                Ok(Begun::Again(Box::new(response)))
            }
            Some(_) => Err(Failure::conflict("the first call of this key is under way")),
            None => {
                kept.calls.insert(key, Entry { payload, answer: None });
                Ok(Begun::New(Place { replays: Arc::clone(self), key, answered: false }))
            }
        }
    }
}

impl Kept {
    fn expire(&mut self, now_ms: i64) {
        while self.order.front().is_some_and(|(until, _)| *until <= now_ms)
            || self.bytes > MAX_BYTES
        {
            let Some((_, key)) = self.order.pop_front() else { return };
            if let Some(Entry { answer: Some((headers, body)), .. }) = self.calls.remove(&key) {
                self.bytes -= size(&headers, &body);
            }
        }
    }
}

impl Place {
    /// Keeps the answer.
    pub(crate) fn keep(mut self, headers: &HeaderMap, body: Bytes, now_ms: i64) {
        if body.len() > MAX_ANSWER_BYTES {
            return;
        }
        let mut kept = self.replays.kept.lock();
        kept.bytes += size(headers, &body);
        kept.order.push_back((now_ms.saturating_add(self.replays.retention_ms), self.key));
        if let Some(entry) = kept.calls.get_mut(&self.key) {
            entry.answer = Some((headers.clone(), body));
        }
        kept.expire(now_ms);
        drop(kept);
        self.answered = true;
    }
}

/// About what an answer takes in memory.
fn size(headers: &HeaderMap, body: &Bytes) -> usize {
    const ENTRY_BYTES: usize = 256;
    let headers = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
    ENTRY_BYTES + headers.sum::<usize>() + body.len()
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.answered {
            self.replays.kept.lock().calls.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(replays: &Arc<Replays>, payload: u128, now_ms: i64) -> Option<Place> {
        match replays.begin(1, payload, now_ms) {
            Ok(Begun::New(place)) => Some(place),
            _ => None,
        }
    }

    #[test]
    fn a_repeat_hears_the_answer_until_its_time_is_over() {
        let replays = Replays::new(1_000);
        let place = begin(&replays, 7, 0).unwrap();
        assert!(replays.begin(1, 7, 0).is_err(), "it is under way");
        place.keep(&HeaderMap::new(), Bytes::from_static(b"yes"), 0);
        assert!(matches!(replays.begin(1, 7, 999), Ok(Begun::Again(_))));
        assert!(replays.begin(1, 8, 999).is_err(), "another payload");
        assert!(begin(&replays, 7, 1_000).is_some(), "its time is over");
    }

    #[test]
    fn a_call_that_was_given_up_may_be_made_again() {
        let replays = Replays::new(1_000);
        drop(begin(&replays, 7, 0));
        assert!(begin(&replays, 9, 0).is_some());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let replays = Replays::new(1_000);
        for key in 0..40 {
            let Ok(Begun::New(place)) = replays.begin(key, 7, 0) else { panic!("a new key") };
            place.keep(&HeaderMap::new(), vec![0; MAX_ANSWER_BYTES].into(), 0);
        }
        let kept = replays.kept.lock();
        assert!(kept.bytes <= MAX_BYTES);
        assert_eq!(kept.calls.len(), MAX_BYTES / MAX_ANSWER_BYTES - 1);
    }

    #[test]
    fn small_answers_are_bounded_with_all_that_comes_with_them() {
        let replays = Replays::new(1_000);
        let mut headers = HeaderMap::new();
        headers.insert("x", "y".repeat(MAX_BYTES / 8).parse().unwrap());
        for key in 0..20 {
            let Ok(Begun::New(place)) = replays.begin(key, 7, 0) else { panic!("a new key") };
            place.keep(&headers, Bytes::from_static(b"yes"), 0);
        }
        assert_eq!(replays.kept.lock().calls.len(), 7);
    }
}
