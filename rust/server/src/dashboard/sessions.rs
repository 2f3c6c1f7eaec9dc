//! Who has signed in with a token.
//!
//! A session stands for its token and no more: each request is answered as one that shows the token, so
//! what ends the token ends the session. Sessions are kept in memory only.

use std::collections::HashMap;
use std::fmt;

use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataValue};

use crate::access::{random, sha256};
use crate::error::ApiError;
use crate::v1::ErrorReason;

/// How long a session lasts.
pub(super) const LASTS_MS: i64 = 12 * 3_600_000;
/// The most sessions of one token; one more ends its oldest.
const PER_TOKEN: usize = 8;
/// The most sessions.
const MOST: usize = 4096;
const SECRET_BYTES: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

struct Session {
    /// The SHA-256 of its key.
    key: String,
    /// What a call with its token has as `authorization`.
    shown: MetadataValue<Ascii>,
    /// On the monotonic clock.
    until_ms: i64,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("until_ms", &self.until_ms).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Begins a session of a token that is good; returns its id and its key.
    pub(super) fn begin(&self, token: &str, mono_ms: i64) -> Result<(String, String), ApiError> {
        let (id, key) = (random::<SECRET_BYTES>()?, random::<SECRET_BYTES>()?);
        let shown = MetadataValue::try_from(format!("Bearer {token}"));
        let shown = shown.map_err(|_| ApiError::field("token", "is not one"))?;
        let mut sessions = self.0.lock();
        sessions.retain(|_, session| session.until_ms > mono_ms);
        let own = || sessions.iter().filter(|(_, session)| session.shown == shown);
        if own().count() >= PER_TOKEN
            && let Some((oldest, _)) = own().min_by_key(|(_, session)| session.until_ms)
        {
            let oldest = oldest.clone();
            sessions.remove(&oldest);
        }
        if sessions.len() >= MOST {
            let message = format!("{MOST} sessions are open, which is the most: try again later");
            return Err(ApiError::new(ErrorReason::TokenLimitReached, message));
        }
        let until_ms = mono_ms.saturating_add(LASTS_MS);
        // By hash: how long a comparison takes tells nothing of the id.
        sessions.insert(sha256(&id), Session { key: sha256(&key), shown, until_ms });
        Ok((id, key))
    }

    /// What a request with this id and key shows.
    pub(super) fn find(&self, id: &str, key: &str, mono_ms: i64) -> Option<MetadataValue<Ascii>> {
        let sessions = self.0.lock();
        let session = sessions.get(&sha256(id)).filter(|session| session.until_ms > mono_ms)?;
        (session.key == sha256(key)).then(|| session.shown.clone())
    }

    pub(super) fn end(&self, id: &str) {
        self.0.lock().remove(&sha256(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_with_its_key_and_until_its_end() {
        let sessions = Sessions::default();
        let (id, key) = sessions.begin("bursar_x_y", 5).expect("room");
        let found = |id: &str, key: &str, ms| sessions.find(id, key, ms).is_some();
        assert!(found(&id, &key, 6) && found(&id, &key, LASTS_MS + 4));
        assert!(!found(&id, &key, LASTS_MS + 5));
        assert!(!found(&id, "-", 6) && !found("", &key, 6) && !found(&key, &id, 6));
        sessions.end(&id);
        assert!(!found(&id, &key, 6));
    }

    #[test]
    fn one_session_too_many_of_a_token_ends_its_oldest() {
        let sessions = Sessions::default();
        let begun: Vec<_> = (0..=8).map(|ms| sessions.begin("one", ms).expect("room")).collect();
        let (other, key) = sessions.begin("two", 0).expect("room");
        let lives = |(id, key): &(String, String)| sessions.find(id, key, 9).is_some();
        assert!(!lives(&begun[0]) && begun[1..].iter().all(lives));
        assert!(lives(&(other, key)));
        assert!(sessions.begin("three\n", 0).is_err(), "not a header");
    }
}
