//! One page: what is counted, what the ledger, the store and the listeners say, and what the watchdog
//! tells of itself. Every figure of a page was true while it was made; none waits for a call.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bursar_ledger::runaway::Rule;
use bursar_ledger::{Survey, Surveyed};

use super::Metrics;
use super::calls::{CODES, METHODS, UNARY};
use super::counts::{CLASSES, Spread};
use super::text::{Kind, Page, Seconds};
use crate::lease;

/// What the watchdog tells of itself.
#[derive(Debug, Clone)]
pub(super) enum Watchdog {
    /// There is none.
    Off,
    /// It does not answer.
    Silent,
    /// Families, as OpenMetrics.
    Says(Arc<str>),
}

/// A word of a window.
type Word = fn(&Surveyed) -> i64;

impl Metrics {
    /// A page as OpenMetrics.
    pub(super) fn page(&self, watchdog: &Watchdog) -> String {
        let mut page = Page::default();
        let survey =
            self.api.engine.ledger.survey(self.section.max_accounts, self.api.engine.now());
        self.daemon(&mut page);
        self.calls(&mut page);
        self.reserves(&mut page);
        budgets(&mut page, &survey);
        accounts(&mut page, &survey);
        self.findings(&mut page);
        self.descriptors(&mut page);
        self.upstreams(&mut page);
        if let Some(figures) = &self.counted.leases {
            leases(&mut page, figures, &survey, self.api.engine.now().mono_ms);
        }
        self.store(&mut page);
        self.connections(&mut page);
        tell(&mut page, watchdog);
        page.append(&self.counted.receivers.lock());
        page.end()
    }

    fn daemon(&self, page: &mut Page) {
        page.family("bursar_build_info", Kind::Gauge, "The version that runs.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        let start_ns = self.start_ms.max(0).unsigned_abs().saturating_mul(1_000_000);
        let help = "When the sidecar was started, in Unix time.";
        page.one("bursar_start_time_seconds", Kind::Gauge, help, Seconds(start_ns));
        let failed = u8::from(self.api.engine.failure().is_some());
        let help = "Whether only reads are answered, since the store has failed.";
        page.one("bursar_read_only", Kind::Gauge, help, failed);
    }

    fn calls(&self, page: &mut Page) {
        let help = "Calls that have ended, by gRPC's code; a stream counts when it is opened.";
        page.family("bursar_calls", Kind::Counter, help);
        for (index, method) in METHODS.iter().enumerate() {
            for (code, count) in CODES.iter().zip(self.counted.calls.by_code(index)) {
                // What has never ended so is left out, but for those that a rate divides by.
                if count > 0 || *code == "OK" {
                    page.sample(&[("method", method), ("code", code)], count);
                }
            }
        }
        let help = "From the head of a call to that of its answer, which is durable by then.";
        page.family("bursar_call_seconds", Kind::Histogram, help);
        for (index, method) in METHODS.iter().take(UNARY).enumerate() {
            page.spread(&[("method", method)], &self.counted.calls.latency(index));
        }
    }

    fn reserves(&self, page: &mut Page) {
        let reserves = &self.api.engine.reserves;
        let help = "Reserves that held something; repeated: the first answer was given again.";
        page.family("bursar_reserves_granted", Kind::Counter, help);
        page.sample(&[("answer", "admitted")], reserves.admitted());
        page.sample(&[("answer", "repeated")], reserves.repeated());
        page.family("bursar_reserves_refused", Kind::Counter, "Reserves that were refused.");
        for (reason, count) in reserves.by_reason() {
            page.sample(&[("reason", reason)], count);
        }
    }

    fn findings(&self, page: &mut Page) {
        let help = "What showed that an account has run away, once per account and interval.";
        page.family("bursar_findings", Kind::Counter, help);
        for rule in Rule::ALL {
            page.sample(&[("rule", rule.name())], self.api.engine.ledger.found(rule));
        }
    }

    fn descriptors(&self, page: &mut Page) {
        let Some(descriptors) = &self.counted.descriptors else { return };
        let help =
            "Descriptors of Envoy's, by the place of the rule in [envoy], or none that fits.";
        page.family("bursar_envoy_descriptors", Kind::Counter, help);
        for (rule, counts) in descriptors.by_rule() {
            for (code, count) in ["OK", "OVER_LIMIT"].into_iter().zip(counts) {
                if count > 0 || rule == "none" {
                    page.sample(&[("rule", &rule), ("code", code)], count);
                }
            }
        }
    }

    fn upstreams(&self, page: &mut Page) {
        let Some(proxy) = &self.counted.proxy else { return };
        let help = "Requests of the proxy to an upstream, by class of the answer's status.";
        page.family("bursar_upstream_requests", Kind::Counter, help);
        for (name, answers) in proxy.answers() {
            for (class, count) in CLASSES.into_iter().zip(answers.by_class()) {
                page.sample(&[("upstream", name), ("status", class)], count);
            }
        }
        let help = "From a request of the proxy to the head of its upstream's answer, or to none.";
        page.family("bursar_upstream_seconds", Kind::Histogram, help);
        for (name, answers) in proxy.answers() {
            page.spread(&[("upstream", name)], &answers.latency());
        }
    }

    fn store(&self, page: &mut Page) {
        let Some(store) = &self.api.engine.store else { return };
        let figures = store.figures();
        let help = "Bytes that were written to the log.";
        page.one("bursar_store_written_bytes", Kind::Counter, help, figures.written_bytes);
        let help = "Bytes of the log that are not in SQLite yet.";
        page.one("bursar_store_backlog_bytes", Kind::Gauge, help, figures.backlog_bytes);
        let help = "Records of the log that are not in SQLite yet.";
        page.one("bursar_store_backlog_records", Kind::Gauge, help, figures.backlog_records);
        let help = "How often the log was brought to the disk, and how long that took.";
        page.family("bursar_store_sync_seconds", Kind::Summary, help);
        page.summary(&[], figures.syncs, figures.sync_ns);
    }

    fn connections(&self, page: &mut Page) {
        page.family("bursar_connections", Kind::Gauge, "Connections that are open.");
        for (listener, own) in &self.counted.connections {
            page.sample(&[("listener", listener)], own.open());
        }
        if let Some(figures) = &self.counted.leases {
            let open = figures.connections.load(Ordering::Relaxed);
            page.sample(&[("listener", "lease")], open);
        }
        let help = "Connections that were closed at once: as many as may be were open.";
        page.family("bursar_connections_turned_away", Kind::Counter, help);
        for (listener, own) in &self.counted.connections {
            page.sample(&[("listener", listener)], own.turned_away());
        }
    }
}

fn budgets(page: &mut Page, survey: &Survey) {
    let words: [(&str, &str, Word); 4] = [
        ("bursar_budget_limit", "The hard limit, in base units.", |one| one.standing.limit),
        ("bursar_budget_spent", "Spent in this period.", |one| one.standing.spent),
        ("bursar_budget_held", "Held and not spent.", |one| one.standing.held),
        ("bursar_budget_remaining", "limit - spent - held.", |one| one.standing.remaining),
    ];
    let periods: Vec<String> =
        survey.budgets.iter().map(|one| one.budget.period.to_string()).collect();
    for (name, help, word) in words {
        page.family(name, Kind::Gauge, help);
        for (one, period) in survey.budgets.iter().zip(&periods) {
            let (account, unit) = (&*one.budget.path, one.budget.unit.name());
            page.sample(&[("account", account), ("unit", unit), ("period", period)], word(one));
        }
    }
}

fn accounts(page: &mut Page, survey: &Survey) {
    let mut gauge = |name, help, value: &dyn std::fmt::Display| {
        page.one(name, Kind::Gauge, help, value);
    };
    gauge("bursar_accounts", "Accounts that exist.", &survey.accounts);
    gauge("bursar_accounts_frozen", "Accounts that are frozen themselves.", &survey.frozen);
    let help = "Accounts with budgets that have no series here (metrics.max_accounts).";
    gauge("bursar_accounts_left_out", help, &survey.left_out);
    gauge("bursar_reservations_pending", "Reservations that are pending.", &survey.pending);
    let help = "Reservations that are pending, or remembered for their keys.";
    gauge("bursar_reservations_kept", help, &survey.kept);
}

fn leases(page: &mut Page, figures: &lease::Figures, survey: &Survey, mono_ms: i64) {
    let open = figures.open.open();
    page.one("bursar_leases", Kind::Gauge, "Leases that have not ended.", open);
    let help = "Leases with a top-up that may be taken back.";
    page.one("bursar_leases_topped_up", Kind::Gauge, help, survey.topped_up);
    let help = "How late rounds of the pump began, to the millisecond.";
    page.family("bursar_pump_lag_seconds", Kind::Histogram, help);
    let mut lag = Spread::default();
    figures.lag.add_to(&mut lag);
    page.spread(&[], &lag);
    let overdue_ms = mono_ms.saturating_sub(figures.due_ms.load(Ordering::Relaxed)).max(0);
    let help = "How long a round of the pump is overdue now.";
    let overdue = Seconds(overdue_ms.unsigned_abs().saturating_mul(1_000_000));
    page.one("bursar_pump_overdue_seconds", Kind::Gauge, help, overdue);
}

fn tell(page: &mut Page, watchdog: &Watchdog) {
    let (answers, told) = match watchdog {
        Watchdog::Off => return,
        Watchdog::Silent => (0, ""),
        Watchdog::Says(families) => (1, &**families),
    };
    let help = "Whether the watchdog answers; while not, nothing is known of GPUs and jobs.";
    page.one("bursar_watchdog_answers", Kind::Gauge, help, answers);
    page.append(told);
}
