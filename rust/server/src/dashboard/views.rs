//! The wire's messages as the page reads them: JSON, times in Unix milliseconds, names of enums in
//! lower case. Amounts of calls are decimal texts, since a browser's numbers end at 2⁵³; those of the
//! live picture are numbers, for the eye.

use prost_types::{Duration, Timestamp};
use serde_json::{Value, json};

use crate::v1;

/// Unix milliseconds, or null.
fn time(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| {
        Value::from(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000)
    })
}

fn length_ms(length: Option<&Duration>) -> i64 {
    length.map_or(0, |length| length.seconds * 1000 + i64::from(length.nanos) / 1_000_000)
}

/// `STATE_TERM` as `term`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

pub(super) fn account(answer: &v1::GetAccountResponse) -> Value {
    let account = answer.account.clone().unwrap_or_default();
    json!({
        "path": account.path,
        "frozen": account.frozen,
        "stopped": account.stopped,
        "reason": account.freeze_reason,
        "created_ms": time(account.create_time.as_ref()),
        "budgets": answer.budgets.iter().map(budget).collect::<Vec<_>>(),
    })
}

fn budget(budget: &v1::Budget) -> Value {
    let period = budget.period.clone().unwrap_or_default();
    json!({
        "unit": budget.unit,
        "limit": budget.limit.to_string(),
        "period": {
            "kind": word(period.kind().as_str_name(), "KIND_"),
            "time_zone": period.time_zone,
            "length_ms": length_ms(period.length.as_ref()),
        },
    })
}

pub(super) fn entries(answer: &v1::ListEntriesResponse) -> Value {
    let entry = |entry: &v1::Entry| {
        json!({
            "sequence": entry.sequence.to_string(),
            "time_ms": time(entry.time.as_ref()),
            "account": entry.account,
            "reservation": entry.reservation,
            "unit": entry.unit,
            "kind": word(entry.kind().as_str_name(), "KIND_"),
            "amount": entry.amount.to_string(),
            "model": entry.model,
            "detail": entry.detail,
        })
    };
    json!({
        "entries": answer.entries.iter().map(entry).collect::<Vec<_>>(),
        "next": answer.next_page_token,
    })
}

pub(super) fn watchdog(status: &v1::Watchdog) -> Value {
    json!({
        "state": word(status.state().as_str_name(), "STATE_"),
        "mode": status.mode,
        "detail": status.detail,
        "driver": status.driver_version,
        "held_back": status.held_back,
    })
}

pub(super) fn device(device: &v1::Device) -> Value {
    json!({
        "index": device.index,
        "name": device.name,
        "total": device.vram_total_bytes,
        "used": device.vram_used_bytes,
        "quarantined": device.vram_quarantined_bytes,
        "busy": device.busy_percent,
        "error": device.error,
    })
}

pub(super) fn process(process: &v1::Process) -> Value {
    json!({
        "pid": process.pid,
        "command": process.command,
        "uid": process.uid,
        "account": process.account,
        "job": process.job,
        "device": process.device,
        "vram": process.vram_bytes,
        "busy": process.busy_percent,
        "state": word(process.state().as_str_name(), "STATE_"),
    })
}

pub(super) fn job(job: &v1::Job) -> Value {
    json!({
        "name": job.name,
        "account": job.account,
        "pid": job.pid,
        "enforce": job.enforce,
        "created_ms": time(job.create_time.as_ref()),
    })
}

pub(super) fn incident(incident: &v1::Incident) -> Value {
    let step = |step: &v1::incident::Step| {
        json!({
            "state": word(step.state().as_str_name(), "STATE_"),
            "time_ms": time(step.time.as_ref()),
            "detail": step.detail,
        })
    };
    let victim = |victim: &v1::incident::Victim| {
        let (pid, command, vram) = (victim.pid, &victim.command, victim.vram_bytes);
        json!({"pid": pid, "command": command, "vram": vram})
    };
    json!({
        "state": word(incident.state().as_str_name(), "STATE_"),
        "account": incident.account,
        "job": incident.job_name,
        "cause": word(incident.cause().as_str_name(), "CAUSE_"),
        "limit_account": incident.limit_account,
        "unit": incident.unit,
        "limit": incident.limit,
        "used": incident.used,
        "reason": incident.reason,
        "vram": incident.vram_bytes,
        "returned": incident.vram_returned_bytes,
        "created_ms": time(incident.create_time.as_ref()),
        "ended_ms": time(incident.end_time.as_ref()),
        "steps": incident.steps.iter().map(step).collect::<Vec<_>>(),
        "victims": incident.victims.iter().map(victim).collect::<Vec<_>>(),
    })
}

pub(super) fn principal(answer: &v1::WhoAmIResponse) -> Value {
    let principal = answer.principal.clone().unwrap_or_default();
    json!({
        "name": principal.name,
        "role": word(principal.role().as_str_name(), "ROLE_"),
        "account": principal.account,
        "expires_ms": time(principal.expire_time.as_ref()),
    })
}
