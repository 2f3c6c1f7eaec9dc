//! Looks at the ledger and the watchdog, and draws the picture that watchers are sent.
//!
//! Nobody looks while nobody watches, and however long a look takes, it takes no more than a twentieth
//! of one core.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bursar_ledger::fact::BudgetId;
use bursar_ledger::{Amounts, Balance, BudgetSpec, Debiting, View};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::burn::Burn;
use super::live::{Live, Picture, Row};
use super::views;
use crate::convert;
use crate::engine::Engine;
use crate::grpc::Api;
use crate::v1;

/// How often is looked at the most.
const INTERVAL_MS: i64 = 500;
/// How much longer than a look the pause after it is.
const PAUSE: i64 = 20;
/// How many looks pass between two at the watchdog.
const WATCHDOG_LOOKS: u32 = 2;
/// How long the watchdog may take.
const WATCHDOG: Duration = Duration::from_secs(2);
/// How long rates are kept while nobody watches.
const KEPT_MS: i64 = 60_000;
/// The most open reservations, and the most incidents, that are shown.
const RESERVATIONS: usize = 2_000;
const INCIDENTS: i32 = 100;

/// Draws as long as somebody watches, until the daemon drains.
pub(super) async fn produce(api: Api, live: Arc<Live>) {
    let mut draining = api.draining.clone();
    tokio::select! {
        () = draw(&api, &live) => {}
        _ = draining.wait_for(|draining| *draining) => {}
    }
}

async fn draw(api: &Api, live: &Live) {
    let mut burns = Burns::default();
    let mut watchdog = Picture::new();
    let mut count: u32 = 0;
    loop {
        live.watched().await;
        if count.is_multiple_of(WATCHDOG_LOOKS) {
            watchdog = look_at_watchdog(api).await;
        }
        count = count.wrapping_add(1);
        let engine = Arc::clone(&api.engine);
        let looked = tokio::task::spawn_blocking(move || {
            let before_ms = engine.now().mono_ms;
            let picture = look(&engine, &mut burns);
            (picture, engine.now().mono_ms - before_ms, burns)
        });
        // It fails when the runtime ends, and then this ends as well.
        let Ok((mut picture, took_ms, same)) = looked.await else { return };
        burns = same;
        picture.extend(watchdog.iter().map(|(key, row)| (key.clone(), Arc::clone(row))));
        live.draw(picture);
        let pause_ms = took_ms.saturating_mul(PAUSE).max(INTERVAL_MS);
        sleep(Duration::from_millis(pause_ms.unsigned_abs())).await;
    }
}

/// The speed of every window that was there at the last look.
#[derive(Debug, Default)]
struct Burns {
    by_budget: HashMap<BudgetId, Burn>,
    seen_ms: i64,
}

impl Burns {
    /// Takes a sample of a window; returns its rate.
    fn see(
        &mut self,
        into: &mut HashMap<BudgetId, Burn>,
        balance: &Balance,
        now_ms: i64,
    ) -> Option<f64> {
        let (window, spent) = (&balance.window, balance.standing.spent);
        let time_s = Duration::from_millis(now_ms.unsigned_abs()).as_secs_f64();
        let kept = self.by_budget.remove(&window.budget.id);
        let mut burn = kept.unwrap_or_else(|| Burn::new(time_s, spent, window.start_ms));
        burn.see(time_s, spent, window.start_ms);
        let rate = burn.told();
        into.insert(window.budget.id, burn);
        rate
    }
}

fn look(engine: &Engine, burns: &mut Burns) -> Picture {
    let now = engine.now();
    if now.mono_ms - burns.seen_ms > KEPT_MS {
        burns.by_budget.clear();
    }
    burns.seen_ms = now.mono_ms;
    let mut picture = Picture::new();
    let mut add = |table, key: Arc<str>, account: Arc<str>, text: String| {
        let row = Row { account: Some(account), text };
        picture.insert((table, key), Arc::new(row));
    };
    let mut seen = HashMap::new();
    for view in engine.ledger.accounts("", None, usize::MAX, now) {
        let budgets = view.balances.iter().zip(&view.budgets).map(|(balance, spec)| {
            budget(balance, spec, burns.see(&mut seen, balance, now.mono_ms))
        });
        let text = json_of(&AccountRow {
            verdict: convert::verdict(view.verdict),
            frozen: view.frozen,
            stopped: view.stopped,
            reason: &view.freeze_reason,
            open: view.open_reservations,
            budgets: budgets.collect(),
        });
        add("account", Arc::clone(&view.path), view.path, text);
    }
    burns.by_budget = seen;
    for (view, debiting) in engine.ledger.open_reservations("", RESERVATIONS, now).shown {
        let id = convert::reservation_id(engine.store_id, view.id);
        let text = reservation(engine.store_id, &view, debiting, now.wall_ms);
        add("reservation", id.into(), view.account, text);
    }
    picture
}

#[derive(Serialize)]
struct AccountRow<'a> {
    verdict: i32,
    frozen: bool,
    stopped: bool,
    reason: &'a str,
    open: i64,
    budgets: Vec<BudgetRow>,
}

/// Unit, period, limit, held, spent, when the window ends (Unix ms, or 0), how long a rolling one is
/// (ms, or 0), thresholds as (share in thousandths, verdict), rate per second. A tuple: there are many.
#[derive(Serialize)]
struct BudgetRow(&'static str, String, i64, i64, i64, i64, i64, Vec<(u16, i32)>, Option<f64>);

fn budget(balance: &Balance, spec: &BudgetSpec, rate: Option<f64>) -> BudgetRow {
    let (window, standing) = (&balance.window, &balance.standing);
    let period = &window.budget.period;
    let end_ms = if window.end_ms == i64::MAX { 0 } else { window.end_ms };
    let thresholds = spec.terms.thresholds.iter();
    let thresholds = thresholds.map(|one| (one.permille, convert::verdict(one.verdict)));
    BudgetRow(
        window.budget.unit.name(),
        period.to_string(),
        standing.limit,
        standing.held,
        standing.spent,
        end_ms,
        period.length_ms,
        thresholds.collect(),
        rate,
    )
}

#[derive(Serialize)]
struct ReservationRow<'a> {
    account: &'a str,
    model: Option<&'a str>,
    granted: Vec<(&'static str, i64)>,
    used: Vec<(&'static str, i64)>,
    created_ms: i64,
    expires_ms: i64,
    by: &'static str,
    parent: Option<String>,
}

fn reservation(store_id: u32, view: &View, debiting: Debiting, wall_ms: i64) -> String {
    let amounts = |amounts: &Amounts| -> Vec<(&'static str, i64)> {
        amounts.iter().map(|(unit, value)| (unit.name(), value)).collect()
    };
    // To the second: a millisecond more or less is no change.
    let expires_s = wall_ms.saturating_add(view.expires_in_ms).saturating_add(500) / 1000;
    json_of(&ReservationRow {
        account: &view.account,
        model: view.model.as_deref(),
        granted: amounts(&view.granted),
        used: amounts(&view.used),
        created_ms: view.created_ms,
        expires_ms: expires_s * 1000,
        by: match debiting {
            Debiting::Calls => "calls",
            Debiting::Metered => "stream",
            Debiting::Leased => "lease",
        },
        parent: view.parent.map(|parent| convert::reservation_id(store_id, parent)),
    })
}

fn json_of(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("numbers and texts are JSON")
}

/// The GPUs, their processes, the jobs and the incidents, as the watchdog tells them.
async fn look_at_watchdog(api: &Api) -> Picture {
    let list = v1::ListProcessesRequest::default();
    let incidents = v1::ListIncidentsRequest { page_size: INCIDENTS, ..Default::default() };
    let asked = async {
        let list =
            api.processes.look::<v1::ListProcessesResponse>("ProcessService/ListProcesses", &list);
        let list = list.await.map_err(|error| error.message)?;
        let incidents = api
            .processes
            .look::<v1::ListIncidentsResponse>("ProcessService/ListIncidents", &incidents);
        Ok((list, incidents.await.map_err(|error| error.message)?))
    };
    let late = || Err("the watchdog does not answer: see its log".to_owned());
    let mut picture = Picture::new();
    let mut add = |table, key: &str, account: Option<&str>, value: &Value| {
        let row = Row { account: account.map(Arc::from), text: value.to_string() };
        picture.insert((table, Arc::from(key)), Arc::new(row));
    };
    match timeout(WATCHDOG, asked).await.unwrap_or_else(|_elapsed| late()) {
        Err(message) => add("watchdog", "", None, &json!({"state": "off", "detail": message})),
        Ok((list, incidents)) => {
            let status = list.watchdog.unwrap_or_default();
            add("watchdog", "", None, &views::watchdog(&status));
            for one in &list.devices {
                add("device", &one.uuid, None, &views::device(one));
            }
            for one in &list.processes {
                let key = format!("{}/{}", one.device, one.pid);
                add("process", &key, Some(&one.account), &views::process(one));
            }
            for one in &list.jobs {
                add("job", &one.id, Some(&one.account), &views::job(one));
            }
            for one in &incidents.incidents {
                add("incident", &one.id, Some(&one.account), &views::incident(one));
            }
        }
    }
    picture
}
