//! What all watchers share: one picture, its changes, and the stream of one watcher.
//!
//! A picture is rows of JSON by table and key. One look at the ledger makes the next picture, however
//! many watch, and each watcher is sent the rows that differ and that it may see. All is bounded: how
//! many watch, how far one may fall behind (then it is sent everything again), and how many rows a
//! message has, so that a browser reads it between two frames.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bursar_ledger::path;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::timeout;

use super::gzip;
use crate::access::Caller;
use crate::grpc::Api;

/// How many changes a watcher may fall behind.
const MAX_BEHIND: usize = 8;
/// The most rows in one message.
const ROWS: usize = 250;
/// A sign of life where nothing changes.
const QUIET: Duration = Duration::from_secs(5);
/// What is behind it is everything.
const START: &str = "data: {\"start\":true}\n\n";
/// What is before it was everything.
const READY: &str = "data: {\"ready\":true}\n\n";

/// The name of a row: its table and its key.
pub(super) type Key = (&'static str, Arc<str>);

/// A row of a picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Who may see this account may see the row; `None`: everybody.
    pub(super) account: Option<Arc<str>>,
    /// JSON.
    pub(super) text: String,
}

pub(super) type Picture = HashMap<Key, Arc<Row>>;

/// What watchers are sent at a time.
#[derive(Debug)]
struct Message {
    text: Bytes,
    /// By gzip, once somebody takes that.
    packed: OnceLock<Bytes>,
}

impl Message {
    fn new(text: impl Into<Bytes>) -> Arc<Message> {
        Arc::new(Message { text: text.into(), packed: OnceLock::new() })
    }
}

/// Where one watcher's messages go.
#[derive(Debug)]
pub(super) struct Parts {
    sender: mpsc::Sender<Bytes>,
    /// Of a watcher that takes gzip.
    frame: Option<gzip::Frame>,
}

impl Parts {
    /// Begins a stream, in a channel that is empty.
    pub(super) fn new(sender: mpsc::Sender<Bytes>, takes_gzip: bool) -> Parts {
        let frame = takes_gzip.then(gzip::Frame::default);
        if takes_gzip {
            let _fits = sender.try_send(gzip::Frame::head());
        }
        Parts { sender, frame }
    }

    async fn send(&mut self, message: &Message) -> Result<(), mpsc::error::SendError<Bytes>> {
        let part = match &mut self.frame {
            Some(frame) => {
                frame.count(&message.text);
                message.packed.get_or_init(|| gzip::blocks(&message.text))
            }
            None => &message.text,
        };
        self.sender.send(part.clone()).await
    }

    /// Ends the stream; who is too slow for that sees it broken off.
    fn end(&self) {
        if let Some(frame) = &self.frame {
            let _fits = self.sender.try_send(frame.tail());
        }
    }
}

/// What differs between two pictures.
#[derive(Debug, Default)]
struct Change {
    set: Vec<(Key, Arc<Row>)>,
    gone: Vec<(Key, Arc<Row>)>,
    /// As it is sent to those who may see everything.
    whole: OnceLock<Vec<Arc<Message>>>,
}

impl Change {
    fn between(before: &Picture, now: &Picture) -> Change {
        let named = |(key, row): (&Key, &Arc<Row>)| (key.clone(), Arc::clone(row));
        let differs = |(key, row): &(&Key, &Arc<Row>)| before.get(*key) != Some(*row);
        let is_gone = |(key, _): &(&Key, &Arc<Row>)| !now.contains_key(*key);
        let mut set: Vec<_> = now.iter().filter(differs).map(named).collect();
        // Accounts come before those below them.
        set.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Change {
            set,
            gone: before.iter().filter(is_gone).map(named).collect(),
            whole: OnceLock::new(),
        }
    }

    /// The messages for who is bound to an account; empty: to none.
    fn messages(&self, account: &str) -> Vec<Arc<Message>> {
        if account.is_empty() {
            return self.whole.get_or_init(|| self.write(account)).clone();
        }
        self.write(account)
    }

    fn write(&self, bound_to: &str) -> Vec<Arc<Message>> {
        let may_see = |(_, row): &&(Key, Arc<Row>)| match &row.account {
            Some(account) => bound_to.is_empty() || path::is_within(account, bound_to),
            None => true,
        };
        let set: Vec<_> = self.set.iter().filter(may_see).collect();
        let gone: Vec<_> = self.gone.iter().filter(may_see).collect();
        let mut messages = Vec::new();
        for rows in set.chunks(ROWS) {
            let row = |((table, key), row): &&(Key, Arc<Row>)| {
                format!("[\"{table}\",{},{}]", quoted(key), row.text)
            };
            messages.push(message("set", rows.iter().map(row)));
        }
        for rows in gone.chunks(ROWS) {
            let name =
                |((table, key), _): &&(Key, Arc<Row>)| format!("[\"{table}\",{}]", quoted(key));
            messages.push(message("gone", rows.iter().map(name)));
        }
        messages
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// One message of a stream; its rows have no line break, which JSON writes as two characters.
fn message(name: &str, rows: impl Iterator<Item = String>) -> Arc<Message> {
    let mut text = format!("data: {{\"{name}\":[");
    for (number, row) in rows.enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let _never_fails = write!(text, "{comma}{row}");
    }
    text.push_str("]}\n\n");
    Message::new(text)
}

/// The picture and who watches it.
#[derive(Debug)]
pub(super) struct Live {
    now: Mutex<Now>,
    changes: broadcast::Sender<Arc<Change>>,
    places: Arc<Semaphore>,
    /// Somebody watches from now on.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Now {
    picture: Picture,
    is_drawn: bool,
}

struct Joined {
    everything: Change,
    /// Whether that is a picture: before the first look there is none.
    is_drawn: bool,
    changes: broadcast::Receiver<Arc<Change>>,
}

impl Live {
    pub(super) fn new(max_watchers: usize) -> Arc<Live> {
        Arc::new(Live {
            now: Mutex::default(),
            changes: broadcast::channel(MAX_BEHIND).0,
            places: Arc::new(Semaphore::new(max_watchers)),
            wanted: Notify::new(),
        })
    }

    /// Whether anybody watches.
    pub(super) fn is_watched(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    /// Waits until somebody watches.
    pub(super) async fn watched(&self) {
        while !self.is_watched() {
            self.wanted.notified().await;
        }
    }

    /// Takes the next picture and tells the watchers what differs.
    pub(super) fn draw(&self, picture: Picture) {
        let mut now = self.now.lock();
        let change = Change::between(&now.picture, &picture);
        let is_first = !std::mem::replace(&mut now.is_drawn, true);
        now.picture = picture;
        if is_first || !(change.set.is_empty() && change.gone.is_empty()) {
            let _watchers = self.changes.send(Arc::new(change));
        }
    }

    /// A place for one who watches; `None`: all are taken.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Everything, for one who begins to watch, and what changes from then on.
    fn join(&self) -> Joined {
        let now = self.now.lock();
        let changes = self.changes.subscribe();
        let everything = Change::between(&Picture::new(), &now.picture);
        let is_drawn = now.is_drawn;
        drop(now);
        self.wanted.notify_one();
        Joined { everything, is_drawn, changes }
    }

    /// Sends one watcher what it may see until it leaves, the daemon drains, or what it came with ends.
    pub(super) async fn watch(&self, api: Api, caller: Caller, mut parts: Parts) {
        let mut draining = api.draining.clone();
        let sender = parts.sender.clone();
        tokio::select! {
            () = self.send(&api, &caller, &mut parts) => {}
            _ = draining.wait_for(|draining| *draining) => {}
            () = sender.closed() => {}
        }
        parts.end();
    }

    async fn send(&self, api: &Api, caller: &Caller, parts: &mut Parts) {
        let clock = || {
            let now_ms = api.engine.now().wall_ms;
            Message::new(format!("data: {{\"now_ms\":{now_ms}}}\n\n"))
        };
        loop {
            let Joined { everything, mut is_drawn, mut changes } = self.join();
            let mut messages = vec![clock(), Message::new(START)];
            messages.extend(everything.messages(caller.account()));
            messages.extend(is_drawn.then(|| Message::new(READY)));
            loop {
                for message in messages {
                    if parts.send(&message).await.is_err() {
                        return;
                    }
                }
                let change = timeout(QUIET, changes.recv()).await;
                if let Err(ended) = api.access.check(caller, api.engine.now().wall_ms) {
                    let text = format!("data: {{\"ended\":{}}}\n\n", quoted(&ended.message));
                    let _told = parts.send(&Message::new(text)).await;
                    return;
                }
                messages = vec![clock()];
                match change {
                    Ok(Ok(change)) => {
                        messages.extend(change.messages(caller.account()));
                        let was_drawn = std::mem::replace(&mut is_drawn, true);
                        messages.extend((!was_drawn).then(|| Message::new(READY)));
                    }
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) => break,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return,
                    Err(_quiet) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(rows: &[(&'static str, &str, Option<&str>, &str)]) -> Picture {
        let row = |(table, key, account, text): &(&'static str, &str, Option<&str>, &str)| {
            let row = Row { account: account.map(Arc::from), text: (*text).to_owned() };
            ((*table, Arc::from(*key)), Arc::new(row))
        };
        rows.iter().map(row).collect()
    }

    fn texts(change: &Change, account: &str) -> Vec<String> {
        let text = |message: &Arc<Message>| String::from_utf8(message.text.to_vec()).expect("text");
        change.messages(account).iter().map(text).collect()
    }

    #[test]
    fn a_change_is_the_rows_that_differ() {
        let before = picture(&[
            ("a", "acme", Some("acme"), "1"),
            ("a", "acme/x", Some("acme/x"), "2"),
            ("g", "acme", None, "4"),
        ]);
        let now = picture(&[("a", "acme", Some("acme"), "1"), ("g", "acme", None, "5")]);
        let change = Change::between(&before, &now);
        assert_eq!(
            texts(&change, ""),
            [
                "data: {\"set\":[[\"g\",\"acme\",5]]}\n\n",
                "data: {\"gone\":[[\"a\",\"acme/x\"]]}\n\n"
            ]
        );
        assert!(Change::between(&now, &now).messages("").is_empty());
    }

    #[test]
    fn who_is_bound_to_an_account_sees_its_rows_and_those_of_everybody() {
        let rows = [
            ("a", "acme/a", Some("acme/a"), "1"),
            ("a", "acme/ab", Some("acme/ab"), "2"),
            ("g", "gpu", None, "3"),
        ];
        let change = Change::between(&Picture::new(), &picture(&rows));
        let seen = texts(&change, "acme/a").concat();
        assert!(seen.contains("[\"a\",\"acme/a\",1]") && seen.contains("[\"g\",\"gpu\",3]"));
        assert!(!seen.contains("acme/ab"), "{seen}");
    }

    #[test]
    fn a_message_has_a_bounded_number_of_rows() {
        let rows: Picture = (0..=ROWS * 2)
            .map(|number| {
                let key = Arc::from(number.to_string());
                (("a", key), Arc::new(Row { account: None, text: "0".into() }))
            })
            .collect();
        assert_eq!(Change::between(&Picture::new(), &rows).messages("").len(), 3);
    }
}
