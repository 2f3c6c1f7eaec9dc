//! What lies under `/api`: thin over the methods that answer gRPC, which check who may.

use hyper::StatusCode;
use prost_types::{Duration, Timestamp};
use serde_json::{Value, json};
use tonic::Code;

use super::answer::{Asked, Failure, invalid};
use super::spending::Chart;
use super::views;
use crate::convert;
use crate::engine::Answer;
use crate::grpc::Api;
use crate::v1;
use crate::v1::access_service_server::AccessService;
use crate::v1::account_service_server::AccountService;

/// The entries on one page.
const PAGE: i32 = 100;

/// Answers what has an answer in JSON; `None`: there is no such path.
pub(super) async fn answer(
    asked: &Asked<'_>,
    is_get: bool,
    path: &str,
    body: &Value,
) -> Result<Option<Value>, Failure> {
    let api = &asked.dashboard.api;
    Ok(Some(match (is_get, path) {
        (true, "/api/me") => {
            // Null for who has not said who they are, and has to: a page that asks for the first
            // time does nothing wrong.
            match api.who_am_i(asked.call(v1::WhoAmIRequest {})).await {
                Err(status) if status.code() == Code::Unauthenticated && !asked.is_somebody() => {
                    Value::Null
                }
                who => views::principal(who?.get_ref()),
            }
        }
        (true, "/api/account") => {
            let request = v1::GetAccountRequest { account: asked.field("account")? };
            views::account(api.get_account(asked.call(request)).await?.get_ref())
        }
        (true, "/api/entries") => entries(api, asked).await?,
        (true, "/api/history") => history(api, asked).await?,
        (false, "/api/limit") => set_limit(api, asked, body).await?,
        (false, "/api/freeze") => {
            let (account, reason) = (text(body, "account")?, text(body, "reason")?);
            api.freeze(asked.call(v1::FreezeRequest { account, reason })).await?;
            json!({})
        }
        (false, "/api/unfreeze") => {
            let request = v1::UnfreezeRequest { account: text(body, "account")? };
            api.unfreeze(asked.call(request)).await?;
            json!({})
        }
        _ => return Ok(None),
    }))
}

fn text(body: &Value, name: &str) -> Result<String, Failure> {
    let found = body[name].as_str().map(str::to_owned);
    found.ok_or_else(|| invalid(&format!("{name}: has to be a text")))
}

fn number(text: &str, name: &str) -> Result<i64, Failure> {
    text.parse().map_err(|_| invalid(&format!("{name}: has to be an integer of 64 bits")))
}

/// The newest entries first.
async fn entries(api: &Api, asked: &Asked<'_>) -> Result<Value, Failure> {
    let time = |name| {
        let text = asked.field(name)?;
        let ms = (!text.is_empty()).then(|| number(&text, name)).transpose()?;
        Ok::<_, Failure>(ms.map(convert::timestamp))
    };
    let (start_time, end_time): (Option<Timestamp>, _) = (time("start_ms")?, time("end_ms")?);
    let kind = asked.field("kind")?;
    let kinds = if kind.is_empty() { vec![] } else { vec![kind_of(&kind)?] };
    let request = asked.call(v1::ListEntriesRequest {
        account: asked.field("account")?,
        reservation: asked.field("reservation")?,
        unit: asked.field("unit")?,
        kinds,
        start_time,
        end_time,
        page_size: PAGE,
        page_token: asked.field("after")?,
    });
    let caller = api.caller(&request)?;
    let account = caller.narrow(&request.get_ref().account)?;
    let request = v1::ListEntriesRequest { account, ..request.into_inner() };
    let turn = api.reads.turn(&caller).await?;
    let page = api.aside_in(turn, move |engine| engine.page_of_entries(&request, true)).await?;
    Ok(views::entries(page.get_ref()))
}

fn kind_of(kind: &str) -> Result<i32, Failure> {
    let name = format!("KIND_{}", kind.to_ascii_uppercase());
    let kind = v1::entry::Kind::from_str_name(&name);
    kind.map(i32::from).ok_or_else(|| invalid("kind: there is no such kind of entry"))
}

async fn history(api: &Api, asked: &Asked<'_>) -> Result<Value, Failure> {
    let caller = api.caller(&asked.call(()))?;
    let account = caller.narrow(&asked.field("account")?)?;
    let (unit, stretch, by) = (asked.field("unit")?, asked.field("stretch")?, asked.field("by")?);
    let count = number(&asked.field("count")?, "count")?;
    let time_zone = asked.field("time_zone")?;
    let turn = api.reads.turn(&caller).await?;
    let drawn = api.aside_in(turn, move |engine| {
        let (account, unit, stretch, by) = (&*account, &*unit, &*stretch, &*by);
        let chart = Chart { account, unit, stretch, by, count, time_zone: &time_zone };
        Ok(Answer::new(chart.draw(engine)?, 0))
    });
    Ok(drawn.await?.into_inner())
}

/// Sets the limit of a budget that is there, and leaves its thresholds as they are. Refused where the
/// limit is no longer the one that was shown to whoever changes it.
async fn set_limit(api: &Api, asked: &Asked<'_>, body: &Value) -> Result<Value, Failure> {
    let (account, unit) = (text(body, "account")?, text(body, "unit")?);
    let limit = number(&text(body, "limit")?, "limit")?;
    let before = number(&text(body, "before")?, "before")?;
    let period = period_of(&body["period"])?;
    let request = v1::GetAccountRequest { account: account.clone() };
    let found = api.get_account(asked.call(request)).await?.into_inner();
    let is_meant = |budget: &v1::Budget| {
        budget.unit == unit && budget.period.as_ref().is_some_and(|one| *one == period)
    };
    let budget = found.budgets.into_iter().find(is_meant);
    let budget = budget.ok_or_else(|| invalid("period: the account has no such budget"))?;
    if budget.limit != before {
        let message = format!("the limit is {} by now: look again", budget.limit);
        return Err(Failure::new(StatusCode::CONFLICT, "INVALID_FIELD", &message));
    }
    let budget = Some(v1::Budget { limit, ..budget });
    api.set_budget(asked.call(v1::SetBudgetRequest { budget })).await?;
    Ok(json!({}))
}

fn period_of(period: &Value) -> Result<v1::Period, Failure> {
    let kind = format!("KIND_{}", text(period, "kind")?.to_ascii_uppercase());
    let kind = v1::period::Kind::from_str_name(&kind);
    let kind = kind.ok_or_else(|| invalid("period.kind: there is no such kind"))?;
    let length_ms = period["length_ms"].as_i64();
    let length_ms = length_ms.ok_or_else(|| invalid("period.length_ms: has to be a number"))?;
    let length: Option<Duration> = (length_ms != 0).then(|| convert::duration(length_ms));
    Ok(v1::Period { kind: kind.into(), time_zone: text(period, "time_zone")?, length })
}
