//! The services on the wire: each call is one on the engine, then its durability, then the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::access::{Access, Act, Caller};
use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::history::{Watch, Watches};
use crate::intake::Announced;
use crate::meter::MeterStream;
use crate::peer::Peer;
use crate::places::{Turn, Turns};
use crate::process::Processes;
use crate::v1::account_service_server::AccountService;
use crate::v1::ledger_service_server::LedgerService;
use crate::{convert, v1};

/// All services.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) access: Arc<Access>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) watches: Arc<Watches>,
    /// Of calls that read the store.
    pub(crate) reads: Arc<Turns>,
    /// Of calls that walk the accounts.
    pub(crate) accounts: Arc<Turns>,
    /// Of calls that walk the reservations.
    pub(crate) reservations: Arc<Turns>,
    /// Of calls that count tokens.
    pub(crate) counts: Arc<Turns>,
    /// Ends the streams when the daemon drains.
    pub(crate) draining: tokio::sync::watch::Receiver<bool>,
}

type Reply<T> = Result<Answer<T>, ApiError>;
pub(crate) type Answered<T> = Result<Response<T>, Status>;

impl Api {
    pub(crate) fn new(
        engine: &Arc<Engine>,
        access: Arc<Access>,
        draining: tokio::sync::watch::Receiver<bool>,
    ) -> Api {
        Api {
            engine: Arc::clone(engine),
            access,
            processes: Arc::default(),
            watches: Arc::default(),
            reads: Arc::default(),
            accounts: Arc::default(),
            reservations: Arc::new(Turns::of(1)),
            counts: Arc::default(),
            draining,
        }
    }

    /// Who makes a call.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<Caller, ApiError> {
        let nobody = Peer::default();
        let peer = request.extensions().get().unwrap_or(&nobody);
        self.access.caller(request.metadata().as_ref(), peer, self.engine.now().wall_ms)
    }

    /// Runs a call on the ledger and lets its answer leave once it is durable.
    pub(crate) async fn answer<T>(&self, call: impl FnOnce(&Engine) -> Reply<T>) -> Answered<T> {
        let answer = call(&self.engine)?;
        if let Err(error) = self.engine.durable.wait(answer.ticket).await {
            self.engine.undo(answer.hold);
            return Err(error.into());
        }
        self.engine.publish(answer.raised);
        Ok(Response::new(answer.body))
    }

    /// Runs a call that may read the disk or take long, away from the data plane.
    pub(crate) async fn aside<T, F>(&self, call: F) -> Answered<T>
    where
        T: Send + 'static,
        F: FnOnce(&Engine) -> Reply<T> + Send + 'static,
    {
        let engine = Arc::clone(&self.engine);
        let run = move || {
            let answer = call(&engine)?;
            engine.durable.wait_blocking(answer.ticket)?;
            Ok::<_, ApiError>(answer.body)
        };
        let ran = tokio::task::spawn_blocking(run).await;
        let ran = ran.map_err(|_| Status::internal("the call was cut off by the shutdown"))?;
        Ok(Response::new(ran?))
    }

    /// As `aside`, for a call whose answer may be large.
    async fn aside_large<T, F>(&self, call: F) -> Answered<T>
    where
        T: Message + 'static,
        F: FnOnce(&Engine) -> Reply<T> + Send + 'static,
    {
        let run = move |engine: &Engine| {
            let Answer { body, ticket, .. } = call(engine)?;
            let announced = Announced::Message(body.encoded_len());
            Ok(Answer::new((body, announced), ticket))
        };
        let (body, announced) = self.aside(run).await?.into_inner();
        let mut response = Response::new(body);
        response.extensions_mut().insert(announced);
        Ok(response)
    }

    /// As `aside_large`, when it is the caller's turn of these.
    async fn read<T, F>(&self, turns: &Turns, caller: &Caller, call: F) -> Answered<T>
    where
        T: Message + 'static,
        F: FnOnce(&Engine) -> Reply<T> + Send + 'static,
    {
        let turn = turns.turn(caller).await?;
        self.aside_large(in_turn(turn, call)).await
    }

    /// As `aside`, for a call whose turn it is.
    pub(crate) async fn aside_in<T, F>(&self, turn: Turn, call: F) -> Answered<T>
    where
        T: Send + 'static,
        F: FnOnce(&Engine) -> Reply<T> + Send + 'static,
    {
        self.aside(in_turn(turn, call)).await
    }
}

/// The call, which keeps its turn until it is over, also when its caller has gone.
fn in_turn<T>(
    turn: Turn,
    call: impl FnOnce(&Engine) -> Reply<T>,
) -> impl FnOnce(&Engine) -> Reply<T> {
    move |engine| {
        let _turn = turn;
        call(engine)
    }
}

#[tonic::async_trait]
impl LedgerService for Api {
    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Answered<v1::ReserveResponse> {
        let caller = self.caller(&request)?;
        let owner = request.extensions().get::<Peer>().and_then(|peer| peer.owner);
        let request = request.get_ref();
        caller.may(Act::Spend, &request.account)?;
        caller.may_use(Act::Spend, &self.engine, &request.parent_reservation)?;
        self.answer(|engine| {
            let answer = engine.reserve(request, owner, caller.maker())?;
            // Before anything is waited for: a caller may hang up meanwhile, and its hold stays.
            if let Some(reservation) = &answer.body.reservation {
                self.access.note_reserved(&caller, engine, &reservation.id);
            }
            Ok(answer)
        })
        .await
    }

    async fn debit(&self, request: Request<v1::DebitRequest>) -> Answered<v1::DebitResponse> {
        let caller = self.caller(&request)?;
        caller.may_use(Act::Spend, &self.engine, &request.get_ref().reservation)?;
        self.answer(|engine| engine.debit(request.get_ref())).await
    }

    type MeterStream = MeterStream;

    async fn meter(&self, requests: Request<Streaming<v1::MeterRequest>>) -> Answered<MeterStream> {
        let caller = self.caller(&requests)?;
        caller.may_act(Act::Spend)?;
        let (engine, access) = (Arc::clone(&self.engine), Arc::clone(&self.access));
        let stream = MeterStream::new(engine, access, caller, requests.into_inner());
        Ok(Response::new(stream))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Answered<v1::ExtendResponse> {
        let caller = self.caller(&request)?;
        caller.may_use(Act::Spend, &self.engine, &request.get_ref().reservation)?;
        self.answer(|engine| engine.extend(request.get_ref())).await
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answered<v1::CommitResponse> {
        let caller = self.caller(&request)?;
        if caller.may_use_at_once(Act::Spend, &self.engine, &request.get_ref().reservation)? {
            return self.answer(|engine| engine.commit(request.get_ref())).await;
        }
        self.read(&self.reads, &caller.clone(), move |engine| {
            caller.may_use_stored(Act::Spend, engine, &request.get_ref().reservation)?;
            engine.commit(request.get_ref())
        })
        .await
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Answered<v1::ReleaseResponse> {
        let caller = self.caller(&request)?;
        if caller.may_use_at_once(Act::Spend, &self.engine, &request.get_ref().reservation)? {
            return self.answer(|engine| engine.release(request.get_ref())).await;
        }
        self.read(&self.reads, &caller.clone(), move |engine| {
            caller.may_use_stored(Act::Spend, engine, &request.get_ref().reservation)?;
            engine.release(request.get_ref())
        })
        .await
    }

    async fn record(&self, request: Request<v1::RecordRequest>) -> Answered<v1::RecordResponse> {
        self.caller(&request)?.may(Act::Spend, &request.get_ref().account)?;
        self.answer(|engine| engine.record(request.get_ref())).await
    }

    async fn check(&self, request: Request<v1::CheckRequest>) -> Answered<v1::CheckResponse> {
        self.caller(&request)?.may(Act::Read, &request.get_ref().account)?;
        self.answer(|engine| engine.check(request.get_ref())).await
    }

    async fn get_reservation(
        &self,
        request: Request<v1::GetReservationRequest>,
    ) -> Answered<v1::GetReservationResponse> {
        let caller = self.caller(&request)?;
        if caller.may_use_at_once(Act::Read, &self.engine, &request.get_ref().reservation)? {
            return self.answer(|engine| engine.get_reservation(request.get_ref())).await;
        }
        self.read(&self.reads, &caller.clone(), move |engine| {
            caller.may_use_stored(Act::Read, engine, &request.get_ref().reservation)?;
            engine.get_reservation(request.get_ref())
        })
        .await
    }

    async fn list_reservations(
        &self,
        request: Request<v1::ListReservationsRequest>,
    ) -> Answered<v1::ListReservationsResponse> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let account = caller.narrow(&request.account)?;
        let request = v1::ListReservationsRequest { account, ..request };
        let list = move |engine: &Engine| engine.list_reservations(&request);
        self.read(&self.reservations, &caller, list).await
    }

    async fn count_tokens(
        &self,
        request: Request<v1::CountTokensRequest>,
    ) -> Answered<v1::CountTokensResponse> {
        let turn = self.counts.turn(&self.caller(&request)?).await?;
        self.aside_in(turn, move |engine| engine.count_tokens(request.get_ref())).await
    }
}

#[tonic::async_trait]
impl AccountService for Api {
    async fn set_budget(
        &self,
        request: Request<v1::SetBudgetRequest>,
    ) -> Answered<v1::SetBudgetResponse> {
        let caller = self.caller(&request)?;
        let request = request.get_ref();
        let budget = request.budget.clone().unwrap_or_default();
        caller.may(Act::Manage, &budget.account)?;
        let what = self.engine.limit_change(&budget);
        let act = |engine: &Engine| engine.set_budget(request);
        self.answer(|engine| engine.operate(&caller, &budget.account, &what, act)).await
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Answered<v1::GetAccountResponse> {
        let caller = self.caller(&request)?;
        caller.may(Act::Read, &request.get_ref().account)?;
        let turn = self.accounts.turn(&caller).await?;
        self.aside_in(turn, move |engine| engine.get_account(request.get_ref())).await
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Answered<v1::ListAccountsResponse> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let account = caller.narrow(&request.account)?;
        let request = v1::ListAccountsRequest { account, ..request };
        self.read(&self.accounts, &caller, move |engine| engine.list_accounts(&request)).await
    }

    async fn freeze(&self, request: Request<v1::FreezeRequest>) -> Answered<v1::FreezeResponse> {
        let caller = self.caller(&request)?;
        let request = request.get_ref();
        caller.may(Act::Manage, &request.account)?;
        let what = format!("froze it: {}", request.reason);
        let act = |engine: &Engine| engine.freeze(request);
        self.answer(|engine| engine.operate(&caller, &request.account, &what, act)).await
    }

    async fn unfreeze(
        &self,
        request: Request<v1::UnfreezeRequest>,
    ) -> Answered<v1::UnfreezeResponse> {
        let caller = self.caller(&request)?;
        let request = request.get_ref();
        caller.may(Act::Manage, &request.account)?;
        let act = |engine: &Engine| engine.unfreeze(request);
        self.answer(|engine| engine.operate(&caller, &request.account, "ended its freeze", act))
            .await
    }

    async fn retire_account(
        &self,
        request: Request<v1::RetireAccountRequest>,
    ) -> Answered<v1::RetireAccountResponse> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        caller.may(Act::Manage, &request.account)?;
        self.aside(move |engine| {
            let act = |engine: &Engine| engine.retire_account(&request);
            engine.operate(&caller, &request.account, "retired it", act)
        })
        .await
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Answered<v1::ListEntriesResponse> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let account = caller.narrow(&request.account)?;
        let request = v1::ListEntriesRequest { account, ..request };
        self.read(&self.reads, &caller, move |engine| engine.list_entries(&request)).await
    }

    type WatchAccountsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchAccountsResponse, Status>> + Send>>;

    async fn watch_accounts(
        &self,
        request: Request<v1::WatchAccountsRequest>,
    ) -> Answered<Self::WatchAccountsStream> {
        const LONGEST_MS: i64 = 60_000;
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let account = caller.narrow(convert::within(&request.account)?)?;
        let interval_ms = match &request.min_interval {
            Some(interval) => convert::duration_ms("min_interval", interval, LONGEST_MS)?.max(50),
            None => 250,
        };
        let interval = Duration::from_millis(interval_ms.unsigned_abs());
        let place = self.watches.open(caller.may_act(Act::Manage).is_ok())?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let Api { engine, access, watches, mut draining, .. } = self.clone();
        tokio::spawn(async move {
            let mut watch = Watch::new(account);
            loop {
                if let Err(ended) = access.check(&caller, engine.now().wall_ms) {
                    drop(place);
                    let _told = sender.send(Err(ended.into())).await;
                    return;
                }
                // For who has not taken what it was told last there is no look.
                if let Ok(untold) = sender.try_reserve() {
                    let turn = watches.turn().await;
                    let look = Arc::clone(&engine);
                    let looked =
                        tokio::task::spawn_blocking(move || (watch.look(&look), watch)).await;
                    drop(turn);
                    let Ok((changes, same)) = looked else { return };
                    watch = same;
                    if let Some(changes) = changes {
                        untold.send(Ok(changes));
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    _ = draining.wait_for(|draining| *draining) => return,
                    () = sender.closed() => return,
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut response: Response<Self::WatchAccountsStream> = Response::new(Box::pin(stream));
        response.extensions_mut().insert(Announced::Stream);
        Ok(response)
    }
}
