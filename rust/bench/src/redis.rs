//! The closed loop over Redis's protocol: a budget as a Lua script would keep it.
//!
//! As over gRPC, one thread, the same few connections, the same keys and accounts. Workers that share
//! a connection pipeline their commands on it, as calls share an HTTP/2 connection: a connection's
//! task writes what is due at once and reads what has come.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::calls::{ACCOUNTS, account};
use crate::plan::{Plan, Span};
use crate::report::Report;
use crate::resp::{self, Reply};
use crate::{Address, Failure, Stream, now, open};

/// What is left of the limit cannot run out, and is exact in Lua's floating point.
const LIMIT: &str = "1000000000000000";
/// What one command holds or spends, and for how long: as a Reserve does.
const AMOUNT: &str = "1";
const TTL_MS: &str = "3600000";
/// The scripts, and where each is among them.
const SOURCES: [&str; 3] = [
    include_str!("../lua/debit.lua"),
    include_str!("../lua/reserve.lua"),
    include_str!("../lua/commit.lua"),
];
const DEBIT: usize = 0;
const RESERVE: usize = 1;
const COMMIT: usize = 2;

/// Which scripts are called and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Spends, without a hold.
    Debit,
    /// Holds, then spends what is held: timed together and each.
    Pair,
}

impl FromStr for Script {
    type Err = String;

    fn from_str(name: &str) -> Result<Script, String> {
        match name {
            "debit" => Ok(Script::Debit),
            "pair" => Ok(Script::Pair),
            _ => Err("one of debit, pair".to_owned()),
        }
    }
}

impl Script {
    /// The parts of what is timed.
    fn halves(self) -> Option<[&'static str; 2]> {
        (self == Script::Pair).then_some(["reserve", "commit"])
    }
}

/// Runs it to its end.
pub async fn run(address: &Address, script: Script, plan: &Plan) -> Result<Report, Failure> {
    let hashes = prepare(address).await?;
    let mut connections = Vec::new();
    for number in 0..plan.connections() {
        let workers = (plan.concurrency - number).div_ceil(plan.connections());
        let connection = Connection {
            stream: open(address).await?,
            names: Names::new(number),
            hashes: hashes.clone(),
            script,
            out: Vec::new(),
            under_way: VecDeque::with_capacity(workers * plan.window),
            report: Report::new(script.halves())?,
        };
        connections.push((connection, workers * plan.window));
    }
    let span = plan.span(connections.len());
    let tasks = tokio::task::LocalSet::new();
    let running: Vec<_> = connections
        .into_iter()
        .map(|(connection, slots)| tasks.spawn_local(connection.run(slots, span.clone())))
        .collect();
    tasks.await;
    let mut report = Report::new(script.halves())?;
    for connection in running {
        report.add(connection.await??)?;
    }
    Ok(report)
}

/// Loads the scripts and makes the budgets; the scripts' hashes.
async fn prepare(address: &Address) -> Result<[String; 3], Failure> {
    let mut stream = open(address).await?;
    let mut hashes = [const { String::new() }; 3];
    for (hash, source) in hashes.iter_mut().zip(SOURCES) {
        let loaded = ask(&mut stream, &["SCRIPT", "LOAD", source]).await?;
        let Reply::Text(text) = loaded else { return Err(format!("{loaded:?}").into()) };
        *hash = text;
    }
    for number in 0..ACCOUNTS {
        let key = format!("budget:{}", account(number));
        let set = ["HSET", &key, "limit", LIMIT, "held", "0", "spent", "0"];
        if let Reply::Error(why) = ask(&mut stream, &set).await? {
            return Err(why.into());
        }
    }
    Ok(hashes)
}

/// One command by itself.
async fn ask(stream: &mut Stream, parts: &[&str]) -> Result<Reply, Failure> {
    let mut out = Vec::new();
    resp::command(&mut out, parts);
    stream.write_all(&out).await?;
    let mut read = BytesMut::new();
    loop {
        if let Some(reply) = resp::take(&mut read)? {
            return Ok(reply);
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err("the connection was closed".into());
        }
    }
}

/// The names in Redis that a script is given, and fresh idempotency keys.
#[derive(Debug)]
struct Names {
    /// Per account: its budget, its holds, their ends.
    keys: Vec<[String; 3]>,
    next: u64,
    turn: usize,
}

impl Names {
    /// Those of one connection.
    fn new(connection: usize) -> Names {
        let keys = |number| {
            let path = account(number);
            [format!("budget:{path}"), format!("holds:{path}"), format!("ends:{path}")]
        };
        let run = u64::from(std::process::id());
        Names {
            keys: (0..ACCOUNTS).map(keys).collect(),
            next: run << 40 | u64::try_from(connection).expect("few connections") << 32,
            turn: connection.wrapping_mul(7919),
        }
    }
}

/// What a command under way is for.
#[derive(Debug)]
enum Step {
    Debit,
    Reserve { account: usize, key: String },
    Commit { reserve: (Instant, Instant) },
}

/// One connection: its task sends and receives for all workers that share it.
struct Connection {
    stream: Stream,
    names: Names,
    hashes: [String; 3],
    script: Script,
    /// What is to be written.
    out: Vec<u8>,
    /// Replies come in the order of the commands.
    under_way: VecDeque<(Instant, Step)>,
    report: Report,
}

impl Connection {
    /// Keeps so many commands under way until the time is over and all are answered.
    async fn run(mut self, slots: usize, mut span: Span) -> Result<Report, Failure> {
        for _ in 0..slots {
            self.begin(&mut span);
        }
        let mut read = BytesMut::with_capacity(1 << 16);
        while !self.under_way.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            if self.stream.read_buf(&mut read).await? == 0 {
                return Err("the connection was closed".into());
            }
            let mut length = read.len();
            while let Some(reply) = resp::take(&mut read)? {
                self.report.answered(length - read.len());
                length = read.len();
                self.answered(&reply, &mut span)?;
            }
        }
        Ok(self.report)
    }

    /// Sends the first command of a slot, if there is time.
    fn begin(&mut self, span: &mut Span) {
        if !span.has_time() {
            return;
        }
        let account = self.names.turn % ACCOUNTS;
        self.names.turn = self.names.turn.wrapping_add(1);
        match self.script {
            Script::Debit => {
                self.send(DEBIT, account, 1, &[AMOUNT]);
                self.under_way.push_back((now(), Step::Debit));
            }
            Script::Pair => {
                let key = format!("{:016x}", self.names.next);
                self.names.next += 1;
                self.send(RESERVE, account, 3, &[&key, AMOUNT, TTL_MS]);
                self.under_way.push_back((now(), Step::Reserve { account, key }));
            }
        }
    }

    /// Calls one of the scripts with these keys and arguments.
    fn send(&mut self, script: usize, account: usize, keys: usize, arguments: &[&str]) {
        let before = self.out.len();
        let count = keys.to_string();
        let mut parts = vec!["EVALSHA", &self.hashes[script], &count];
        parts.extend(self.names.keys[account][..keys].iter().map(String::as_str));
        parts.extend(arguments);
        resp::command(&mut self.out, &parts);
        self.report.asked(self.out.len() - before);
    }

    /// A reply to the oldest command.
    fn answered(&mut self, reply: &Reply, span: &mut Span) -> Result<(), Failure> {
        let end = now();
        let (start, step) = self.under_way.pop_front().ok_or("a reply to nothing")?;
        // A debit answers what remains, the others whether they did it.
        let is_debit = matches!(step, Step::Debit);
        let has_done = |number| if is_debit { number >= 0 } else { number == 1 };
        if !reply.number().is_some_and(has_done) {
            self.report.fail(|| format!("{reply:?}"));
            self.begin(span);
            return Ok(());
        }
        match step {
            Step::Debit => {
                if span.covers(start, end) {
                    self.report.took(start, end);
                }
                self.begin(span);
            }
            Step::Reserve { account, key } => {
                self.send(COMMIT, account, 3, &[&key, AMOUNT]);
                self.under_way.push_back((now(), Step::Commit { reserve: (start, end) }));
            }
            Step::Commit { reserve } => {
                if span.covers(reserve.0, end) {
                    self.report.took_pair(reserve, (start, end));
                }
                self.begin(span);
            }
        }
        Ok(())
    }
}
