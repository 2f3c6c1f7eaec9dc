//! Who may do what.
//!
//! A caller is a principal with a role, bound to an account and those below it: by its token, or on the
//! Unix socket by what the kernel says of its process. Every service asks here before it does anything.
//! A token that is shown counts, also where the sidecar is open to all; it is looked at again for each
//! call and each turn of a stream, so that its end is the end.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod service;
mod vault;

use std::path::PathBuf;
use std::sync::Arc;

use bursar_ledger::{LedgerError, path};
use serde::{Deserialize, Serialize};
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::engine::{Engine, OpenError};
use crate::error::ApiError;
use crate::listen::Peer;
use crate::v1::{self, ErrorReason};
pub(crate) use vault::sha256;
use vault::{PREFIX, Token, Vault};

/// What a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Spends, and reads.
    Agent,
    /// Reads.
    Observer,
    /// Everything.
    Operator,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Observer => "observer",
            Role::Operator => "operator",
        }
    }

    pub(crate) fn of_wire(role: i32) -> Option<Role> {
        match v1::Role::try_from(role).ok()? {
            v1::Role::Unspecified => None,
            v1::Role::Agent => Some(Role::Agent),
            v1::Role::Observer => Some(Role::Observer),
            v1::Role::Operator => Some(Role::Operator),
        }
    }

    pub(crate) fn to_wire(self) -> i32 {
        let role = match self {
            Role::Agent => v1::Role::Agent,
            Role::Observer => v1::Role::Observer,
            Role::Operator => v1::Role::Operator,
        };
        role.into()
    }
}

/// What a call does to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Read,
    Spend,
    Manage,
}

/// Who may call without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Whoever reaches a listener, as an operator: the socket's mode is the guard.
    #[default]
    Open,
    /// By the Unix socket: root, the sidecar's own user, and whom the configuration names.
    Enforce,
}

/// `[access]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessSection {
    mode: Mode,
    local: Vec<LocalSection>,
}

/// Whoever calls by the Unix socket and is all of this.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalSection {
    uid: Option<u32>,
    gid: Option<u32>,
    role: Role,
    /// Empty: all.
    account: String,
}

/// Says who a caller is.
#[derive(Debug)]
pub(crate) struct Access {
    section: AccessSection,
    own_uid: u32,
    vault: Vault,
}

/// A caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    role: Role,
    /// Empty: all.
    account: Arc<str>,
    token: Option<Arc<Token>>,
}

impl Access {
    /// Reads the tokens that are kept beside the store.
    pub(crate) fn open(
        section: AccessSection,
        store: Option<PathBuf>,
    ) -> Result<Access, OpenError> {
        let path = store.map(|path| {
            let mut name = path.into_os_string();
            name.push(".tokens");
            PathBuf::from(name)
        });
        let what = format!("the tokens in {}", path.clone().unwrap_or_default().display());
        let vault = Vault::open(path).map_err(|error| OpenError::Io(what, error))?;
        Ok(Access { section, own_uid: rustix::process::geteuid().as_raw(), vault })
    }

    /// Who makes a call.
    pub(crate) fn caller<T>(&self, request: &Request<T>, now_ms: i64) -> Result<Caller, ApiError> {
        if let Some(shown) = bearer(request.metadata())? {
            return self.by_token(shown, now_ms);
        }
        let peer = request.extensions().get::<Peer>();
        let ids = peer.and_then(|peer| peer.ids);
        self.by_ids(ids)
    }

    /// Whose token this is.
    pub(crate) fn by_token(&self, shown: &str, now_ms: i64) -> Result<Caller, ApiError> {
        let token = self.vault.find(shown).ok_or_else(|| unauthenticated("no such token"))?;
        if let Some(why) = token.ended(now_ms) {
            let message = format!("the token {} ({}) {why}: ask for another", token.id, token.name);
            return Err(unauthenticated(&message));
        }
        Ok(Caller {
            name: token.name.as_str().into(),
            role: token.role,
            account: token.account.as_str().into(),
            token: Some(token),
        })
    }

    pub(crate) fn by_ids(&self, ids: Option<(u32, u32)>) -> Result<Caller, ApiError> {
        let name = ids.map_or("a caller by TCP".into(), |(uid, _)| format!("user {uid}").into());
        let of = |role, account: &str| Caller { name, role, account: account.into(), token: None };
        if self.section.mode == Mode::Open {
            return Ok(of(Role::Operator, ""));
        }
        let Some((uid, gid)) = ids else {
            let message = "a call by TCP needs a token: `authorization: Bearer bursar_…`";
            return Err(unauthenticated(message));
        };
        let is_meant = |row: &&LocalSection| {
            row.uid.is_none_or(|wanted| wanted == uid) && row.gid.is_none_or(|wanted| wanted == gid)
        };
        match self.section.local.iter().find(is_meant) {
            Some(row) => Ok(of(row.role, &row.account)),
            None if uid == 0 || uid == self.own_uid => Ok(of(Role::Operator, "")),
            None => {
                let message = format!(
                    "user {uid} is nobody here: show a token, or have a row in access.local"
                );
                Err(unauthenticated(&message))
            }
        }
    }

    /// The account that a call of the proxy may spend on, and those below it; `None`: all. What is no
    /// token of ours may be meant for the upstream.
    pub(crate) fn spender(
        &self,
        shown: Option<&str>,
        now_ms: i64,
    ) -> Result<Option<String>, ApiError> {
        match shown {
            Some(shown) if shown.starts_with(PREFIX) => {
                let caller = self.by_token(shown, now_ms)?;
                caller.may_act(Act::Spend)?;
                Ok((!caller.account.is_empty()).then(|| caller.account.to_string()))
            }
            _ if self.section.mode == Mode::Open => Ok(None),
            _ => Err(unauthenticated("the call needs a token as its API key: bursar_…")),
        }
    }

    /// Fails once the token that a caller came with has ended.
    pub(crate) fn check(&self, caller: &Caller, now_ms: i64) -> Result<(), ApiError> {
        let Some(token) = &caller.token else { return Ok(()) };
        match self.vault.get(&token.id) {
            Some(token) if token.ended(now_ms).is_none() => Ok(()),
            _ => Err(unauthenticated("the token has ended: ask for another")),
        }
    }
}

impl Caller {
    /// Whether it may do this to an account.
    pub(crate) fn may(&self, act: Act, account: &str) -> Result<(), ApiError> {
        self.may_act(act)?;
        if self.is_bound_to(account) {
            return Ok(());
        }
        let account = if account.is_empty() { "all accounts" } else { account };
        Err(self.not_allowed(&format!("has no say over {account}")))
    }

    /// Whether its role allows this at all.
    pub(crate) fn may_act(&self, act: Act) -> Result<(), ApiError> {
        match (self.role, act) {
            (Role::Operator, _) | (_, Act::Read) | (Role::Agent, Act::Spend) => Ok(()),
            (Role::Observer, Act::Spend) => Err(self.not_allowed("may only read")),
            (_, Act::Manage) => Err(self.not_allowed("may not do what operators do")),
        }
    }

    /// Whether it may do this to a reservation; another's is none.
    pub(crate) fn may_use(
        &self,
        act: Act,
        engine: &Engine,
        reservation: &str,
    ) -> Result<(), ApiError> {
        self.may_act(act)?;
        if self.account.is_empty() || reservation.is_empty() {
            return Ok(());
        }
        engine.account_of(reservation)?.map_or(Ok(()), |account| self.may_see(&account))
    }

    /// As `may_use`, for one that only the store still has.
    pub(crate) fn may_use_stored(
        &self,
        act: Act,
        engine: &Engine,
        reservation: &str,
    ) -> Result<(), ApiError> {
        self.may_act(act)?;
        if self.account.is_empty() {
            return Ok(());
        }
        let request = v1::GetReservationRequest { reservation: reservation.to_owned() };
        let found = engine.get_reservation(&request)?.body.reservation.unwrap_or_default();
        self.may_see(&found.account)
    }

    /// Another's reservation is answered like one that does not exist.
    fn may_see(&self, account: &str) -> Result<(), ApiError> {
        if self.is_bound_to(account) {
            return Ok(());
        }
        Err(LedgerError::ReservationNotFound.into())
    }

    /// The accounts that it may ask about of those it asks about.
    pub(crate) fn narrow(&self, account: &str) -> Result<String, ApiError> {
        if account.is_empty() {
            return Ok(self.account.to_string());
        }
        self.may(Act::Read, account)?;
        Ok(account.to_owned())
    }

    /// The account that it is bound to; empty: all.
    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    fn is_bound_to(&self, account: &str) -> bool {
        self.account.is_empty() || path::is_within(account, &self.account)
    }

    fn not_allowed(&self, what: &str) -> ApiError {
        let Caller { name, role, account, .. } = self;
        let place = if account.is_empty() { "all accounts" } else { account };
        let message = format!("{name} is {} of {place}, and {what}", role.name());
        ApiError::new(ErrorReason::NotAllowed, message)
            .with("role", role.name())
            .with("account", account.to_string())
    }
}

/// The token that a call shows. What is no bearer token is none that counts here.
fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let shown = value.to_str().ok().and_then(|text| text.split_once(' '));
    match shown {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token)),
        _ => Err(unauthenticated("authorization: write `Bearer bursar_…`")),
    }
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(ErrorReason::Unauthenticated, message)
}
