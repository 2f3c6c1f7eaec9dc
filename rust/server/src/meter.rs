//! One Meter stream: debits in, verdicts out, and news in between.
//!
//! It runs where its connection's reading and writing run, and only when the transport asks for the
//! next response: nothing is spawned or queued. So a client that does not read is not read from, and is
//! told the latest once it reads again. What it has claimed is unclaimed when it is dropped.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bursar_ledger::{Amounts, Debited, LedgerError, ReservationId, Verdict};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::access::{Access, Act, Caller};
use crate::calls::advice;
use crate::convert;
use crate::engine::Engine;
use crate::error::ApiError;
use crate::meters::Place;
use crate::v1::{self, ErrorReason};

/// The most debits of one request, and the most answers of one response.
const MAX_DEBITS: usize = 1_000;
/// The most pending reservations of one stream.
const MAX_RESERVATIONS: usize = 10_000;
/// The least time between two looks at all reservations: many changes cost as much as one.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// How often rolling windows are looked at while one of them warns: time alone ends that.
const ROLL_PAUSE: Duration = Duration::from_millis(250);

type Item = Result<v1::MeterResponse, Status>;
type Durable = Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send>>;
type Timer = Option<Pin<Box<Sleep>>>;

/// One stream.
pub(crate) struct MeterStream {
    engine: Arc<Engine>,
    access: Arc<Access>,
    caller: Caller,
    requests: Streaming<v1::MeterRequest>,
    place: Place,
    /// The reservations that it has claimed.
    claimed: HashMap<ReservationId, Told>,
    /// A response that reports a crossing, until that is durable.
    waiting: Option<(v1::MeterResponse, Durable)>,
    /// News that did not fit into one response.
    news: Vec<v1::MeterAnswer>,
    /// Whether verdicts may have changed since the last look.
    stale: bool,
    /// Runs after a look, until the next one may follow.
    pause: Timer,
    /// Runs while a rolling window warns.
    roll: Timer,
}

/// What the client has told of a reservation, and was told.
#[derive(Default)]
struct Told {
    /// The highest counts: every verdict is about these.
    used: Amounts,
    verdict: i32,
    reason: i32,
    /// Boxed: mostly there is none.
    advice: Option<Box<v1::Advice>>,
}

impl Told {
    /// Notes an answer; returns whether it tells anything new.
    fn note(&mut self, answer: &v1::MeterAnswer) -> bool {
        let reason = answer.refusal.as_ref().map_or(0, |refusal| refusal.reason);
        let advice = answer.advice.as_ref();
        if (self.verdict, self.reason) == (answer.verdict, reason)
            && self.advice.as_deref() == advice
        {
            return false;
        }
        (self.verdict, self.reason) = (answer.verdict, reason);
        self.advice = advice.cloned().map(Box::new);
        true
    }
}

impl MeterStream {
    pub(crate) fn new(
        engine: Arc<Engine>,
        access: Arc<Access>,
        caller: Caller,
        requests: Streaming<v1::MeterRequest>,
    ) -> MeterStream {
        MeterStream {
            place: engine.meters.open(),
            engine,
            access,
            caller,
            requests,
            claimed: HashMap::new(),
            waiting: None,
            news: Vec::new(),
            stale: false,
            pause: None,
            roll: None,
        }
    }

    /// One answer for each debit, in order, and what has to be durable before they may leave.
    fn answer(&mut self, request: v1::MeterRequest) -> Result<(v1::MeterResponse, u64), ApiError> {
        self.engine.check_open()?;
        self.access.check(&self.caller, self.engine.now().wall_ms)?;
        if request.debits.len() > MAX_DEBITS {
            let message = format!("{} in one request: at most {MAX_DEBITS}", request.debits.len());
            return Err(ApiError::field("debits", message));
        }
        let mut ticket = 0;
        let mut answers = Vec::with_capacity(request.debits.len());
        for debit in request.debits {
            let debited = self.debit(&debit);
            answers.push(match debited {
                Ok((id, debited)) => {
                    ticket = ticket.max(debited.ticket);
                    let answer = answer_of(debit.reservation, &debited);
                    self.claimed.entry(id).or_default().note(&answer);
                    answer
                }
                Err(error) => failure_of(debit.reservation, error),
            });
        }
        Ok((v1::MeterResponse { answers, unasked: false }, ticket))
    }

    fn debit(&mut self, debit: &v1::MeterDebit) -> Result<(ReservationId, Debited), ApiError> {
        let engine = &self.engine;
        let id = convert::parse_reservation_id(engine.store_id, &debit.reservation)?;
        let mut used = engine.used(id, &debit.used, debit.usage.as_ref())?;
        match self.claimed.get(&id) {
            Some(told) => used = used.max(&told.used),
            None if self.claimed.len() >= MAX_RESERVATIONS => return Err(too_many()),
            None => self.caller.may_use(Act::Spend, engine, &debit.reservation)?,
        }
        let debited = engine.ledger.debit_through(self.place.channel(), id, &used, engine.now());
        match debited {
            Ok(debited) => {
                self.claimed.entry(id).or_default().used = used;
                self.watch_rolling(debited.scope.rolls());
                Ok((id, debited))
            }
            Err(error) => {
                if has_ended(&error) {
                    self.claimed.remove(&id);
                }
                Err(error.into())
            }
        }
    }

    /// Looks at every reservation; returns what has to be durable before the news may leave.
    fn look(&mut self) -> u64 {
        self.stale = false;
        self.pause = Some(Box::pin(sleep(LOOK_PAUSE)));
        let (engine, channel, now) = (&self.engine, self.place.channel(), self.engine.now());
        let (mut ticket, mut rolls) = (0, false);
        let news = &mut self.news;
        self.claimed.retain(|id, told| {
            let name = || convert::reservation_id(engine.store_id, *id);
            match engine.ledger.debit_through(channel, *id, &told.used, now) {
                Ok(debited) => {
                    ticket = ticket.max(debited.ticket);
                    if debited.verdict != Verdict::Ok || told.verdict != v1::Verdict::Ok as i32 {
                        let answer = answer_of(name(), &debited);
                        if told.note(&answer) {
                            news.push(answer);
                        }
                        rolls |= debited.scope.rolls();
                    }
                    true
                }
                Err(error) => {
                    news.push(failure_of(name(), error.into()));
                    false
                }
            }
        });
        self.watch_rolling(rolls);
        ticket
    }

    /// Has all looked at again in a while when a rolling window warns.
    fn watch_rolling(&mut self, rolls: bool) {
        if rolls && self.roll.is_none() {
            self.roll = Some(Box::pin(sleep(ROLL_PAUSE)));
        }
    }

    /// Gathers what nobody asked for; returns what has to be durable before it may leave.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<u64, ApiError> {
        let heard = self.place.look(context);
        if heard.draining {
            let message = "the sidecar is draining: meter again on a new connection";
            return Err(ApiError::new(ErrorReason::ShuttingDown, message));
        }
        for (id, state) in heard.ended {
            if self.claimed.remove(&id).is_some() {
                let name = convert::reservation_id(self.engine.store_id, id);
                let error = LedgerError::ReservationEnded(state).into();
                self.news.push(failure_of(name, error));
            }
        }
        let rolled = self.roll.is_some() && is_over(&mut self.roll, context);
        self.stale |= heard.verdicts || rolled;
        let is_due = self.stale && is_over(&mut self.pause, context);
        let ticket = if is_due { self.look() } else { 0 };
        // A timer wakes only those who have asked it.
        let _asked = self.roll.as_mut().map(|roll| roll.as_mut().poll(context));
        Ok(ticket)
    }

    /// Lets a response leave, at once or when it is durable.
    fn send(&mut self, response: v1::MeterResponse, ticket: u64) -> Option<v1::MeterResponse> {
        if ticket == 0 {
            return Some(response);
        }
        let engine = Arc::clone(&self.engine);
        let durable = Box::pin(async move { engine.durable.wait(ticket).await });
        self.waiting = Some((response, durable));
        None
    }

    /// The next response.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        loop {
            if let Some((_, durable)) = &mut self.waiting {
                ready!(durable.as_mut().poll(context))?;
                return Poll::Ready(self.waiting.take().map(|(response, _)| Ok(response)));
            }
            let mut ticket = 0;
            if self.news.is_empty() {
                ticket = self.gather(context)?;
            }
            if !self.news.is_empty() {
                self.access.check(&self.caller, self.engine.now().wall_ms)?;
            }
            let (response, ticket) = if self.news.is_empty() {
                match ready!(Pin::new(&mut self.requests).poll_next(context)) {
                    Some(request) => self.answer(request?)?,
                    None => return Poll::Ready(None),
                }
            } else {
                let count = self.news.len().min(MAX_DEBITS);
                let answers = self.news.drain(..count).collect();
                (v1::MeterResponse { answers, unasked: true }, ticket)
            };
            if let Some(response) = self.send(response, ticket) {
                return Poll::Ready(Some(Ok(response)));
            }
        }
    }
}

impl Stream for MeterStream {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        self.poll(context)
    }
}

impl Drop for MeterStream {
    fn drop(&mut self) {
        for id in self.claimed.keys() {
            self.engine.ledger.unclaim(*id, self.place.channel());
        }
    }
}

/// Whether a timer has run out; without one there is nothing to wait for.
fn is_over(timer: &mut Timer, context: &mut Context<'_>) -> bool {
    let over = timer.as_mut().is_none_or(|timer| timer.as_mut().poll(context).is_ready());
    if over {
        *timer = None;
    }
    over
}

fn has_ended(error: &LedgerError) -> bool {
    matches!(error, LedgerError::ReservationEnded(_) | LedgerError::ReservationNotFound)
}

fn answer_of(reservation: String, debited: &Debited) -> v1::MeterAnswer {
    v1::MeterAnswer {
        reservation,
        verdict: convert::verdict(debited.verdict),
        remaining: convert::list_for(&debited.remaining, &debited.held),
        advice: advice(debited.verdict, &debited.scope),
        refusal: debited.refusal.as_ref().map(convert::refusal),
        error: None,
    }
}

fn failure_of(reservation: String, error: ApiError) -> v1::MeterAnswer {
    let metadata = error.metadata.into_iter().map(|(name, value)| (name.into_owned(), value));
    let error = v1::MeterError {
        reason: error.reason.into(),
        message: error.message,
        metadata: metadata.collect(),
    };
    let verdict = v1::Verdict::Stop.into();
    v1::MeterAnswer { reservation, verdict, error: Some(error), ..v1::MeterAnswer::default() }
}

fn too_many() -> ApiError {
    let message = format!("a Meter stream has at most {MAX_RESERVATIONS} pending reservations");
    ApiError::new(ErrorReason::ReservationLimitReached, message)
        .with("max", MAX_RESERVATIONS.to_string())
}
