//! When a budget starts anew.
//!
//! Turns a period and a wall-clock time into the bounds of the window that contains it. Calendar
//! periods follow an IANA time zone out of the embedded database, so the result never depends on
//! the host. Pure: the time is an argument.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, ZonedDateTime};
use serde::{Deserialize, Serialize};

/// The shortest and the longest rolling period.
pub const ROLLING_MS: std::ops::RangeInclusive<i64> = 1_000..=366 * 86_400_000;

/// How long a window lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PeriodKind {
    /// One window that never ends.
    Total,
    /// From full hour to full hour.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday, midnight.
    Week,
    /// From the first of the month, midnight.
    Month,
    /// The last `length_ms`, at any moment.
    Rolling,
}

/// When a budget starts anew; with account and unit it names the budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Period {
    /// The kind.
    pub kind: PeriodKind,
    /// The IANA time zone of calendar periods; `UTC` for the others.
    pub time_zone: String,
    /// The length of a rolling period in milliseconds; 0 for the others.
    pub length_ms: i64,
}

/// Why a period is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    /// The time zone is not in the database.
    #[error("unknown time zone {0:?}: write an IANA name such as \"Europe/Berlin\"")]
    TimeZone(String),
    /// The length of a rolling period is out of bounds.
    #[error("a rolling period of {0} ms: its length is 1 second to 366 days")]
    Length(i64),
}

impl Period {
    /// The window that never ends.
    pub fn total() -> Period {
        Period { kind: PeriodKind::Total, time_zone: "UTC".into(), length_ms: 0 }
    }

    /// The last `length_ms`, at any moment.
    pub fn rolling(length_ms: i64) -> Period {
        Period { kind: PeriodKind::Rolling, time_zone: "UTC".into(), length_ms }
    }

    /// A calendar period in a time zone.
    pub fn calendar(kind: PeriodKind, time_zone: &str) -> Period {
        Period { kind, time_zone: time_zone.into(), length_ms: 0 }
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.kind {
            PeriodKind::Total => return f.write_str("total"),
            PeriodKind::Rolling if self.length_ms % 1000 == 0 => {
                return write!(f, "rolling:{}s", self.length_ms / 1000);
            }
            PeriodKind::Rolling => return write!(f, "rolling:{}ms", self.length_ms),
            PeriodKind::Hour => "hour",
            PeriodKind::Day => "day",
            PeriodKind::Week => "week",
            PeriodKind::Month => "month",
        };
        f.write_str(name)?;
        if self.time_zone == "UTC" { Ok(()) } else { write!(f, "@{}", self.time_zone) }
    }
}

/// A checked period that can compute bounds.
#[derive(Debug, Clone)]
pub struct Calendar {
    kind: PeriodKind,
    time_zone: TimeZone,
}

impl Calendar {
    /// Checks the period.
    pub fn new(period: &Period) -> Result<Calendar, PeriodError> {
        if period.kind == PeriodKind::Rolling && !ROLLING_MS.contains(&period.length_ms) {
            return Err(PeriodError::Length(period.length_ms));
        }
        let time_zone = TimeZone::get(&period.time_zone)
            .map_err(|_| PeriodError::TimeZone(period.time_zone.clone()))?;
        Ok(Calendar { kind: period.kind, time_zone })
    }

    /// The first millisecond of the window that contains `now_ms`, and the first after it
    /// (`i64::MAX` when it never ends).
    pub fn bounds(&self, now_ms: i64) -> (i64, i64) {
        let Ok(now) = Timestamp::from_millisecond(now_ms) else {
            return (now_ms, i64::MAX);
        };
        let now = now.to_zoned_datetime(self.time_zone.clone());
        let day = |back: i64| now.date().checked_sub(back.days()).ok();
        let (start, end) = match self.kind {
            PeriodKind::Total | PeriodKind::Rolling => return (now_ms, i64::MAX),
            PeriodKind::Hour => return hour(&now, now_ms),
            PeriodKind::Day => (Some(now.date()), now.date().tomorrow().ok()),
            PeriodKind::Week => {
                let monday = day(i64::from(now.weekday().to_monday_zero_offset()));
                (monday, monday.and_then(|date| date.checked_add(1.week()).ok()))
            }
            PeriodKind::Month => {
                let first = now.date().first_of_month();
                (Some(first), first.checked_add(1.month()).ok())
            }
        };
        let midnight = |date: Option<jiff::civil::Date>| {
            let zoned = date?.to_zoned_datetime(self.time_zone.clone()).ok()?;
            Some(zoned.timestamp().as_millisecond())
        };
        (midnight(start).unwrap_or(now_ms), midnight(end).unwrap_or(i64::MAX))
    }
}

/// Full hours of local time; where the offset changes within one, it is cut short.
fn hour(now: &ZonedDateTime, now_ms: i64) -> (i64, i64) {
    const HOUR_MS: i64 = 3_600_000;
    let offset_ms = i64::from(now.offset().seconds()) * 1000;
    let start = (now_ms + offset_ms).div_euclid(HOUR_MS) * HOUR_MS - offset_ms;
    (start, start + HOUR_MS)
}
