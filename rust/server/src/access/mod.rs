//! Who may do what.
//!
//! A caller is a principal with a role, bound to an account and those below it: by its token, by the
//! certificate of its connection, or on the Unix socket by what the kernel says of its process. Every
//! listener asks here before it does anything, with what it knows: [`Access::caller`].
//! What is shown counts, also where the sidecar is open to all; it is looked at again for each call
//! and each turn of a stream, so that its end is the end.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod known;
mod reserved;
mod service;
mod vault;

use std::path::PathBuf;
use std::sync::Arc;

use bursar_ledger::{LedgerError, path};
use hyper::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::config::ConfigError;
use crate::convert;
use crate::engine::{Engine, OpenError};
use crate::error::ApiError;
use crate::history::Whose;
use crate::maker::{self, Maker};
use crate::peer::{self, Peer};
use crate::v1::{self, ErrorReason};
pub(crate) use known::AccessSection;
use reserved::Reserved;
use vault::{PREFIX, Token, Vault};
pub(crate) use vault::{random, sha256};

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

/// Says who a caller is.
#[derive(Debug)]
pub(crate) struct Access {
    section: AccessSection,
    own_uid: u32,
    vault: Vault,
    reserved: Reserved,
}

/// A caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    role: Role,
    /// Empty: all.
    account: Arc<str>,
    shown: Shown,
}

/// What a caller is known by, where that can end.
#[derive(Debug, Clone)]
enum Shown {
    Nothing,
    Token(Arc<Token>),
    Certificate(Arc<Certificate>),
}

impl Access {
    /// Reads the tokens that are kept beside the store.
    pub(crate) fn open(
        section: AccessSection,
        store: Option<PathBuf>,
    ) -> Result<Access, OpenError> {
        if section.knows_cgroups() && !peer::knows_cgroups() {
            let message = "access.local: who calls is known by a cgroup from Linux 6.5 on";
            return Err(ConfigError::new(message).into());
        }
        let path = store.map(|path| {
            let mut name = path.into_os_string();
            name.push(".tokens");
            PathBuf::from(name)
        });
        let what = format!("the tokens in {}", path.clone().unwrap_or_default().display());
        let vault = Vault::open(path).map_err(|error| OpenError::Io(what, error))?;
        let own_uid = rustix::process::geteuid().as_raw();
        Ok(Access { section, own_uid, vault, reserved: Reserved::default() })
    }

    /// Whether a listener has to ask for the control groups of its peers.
    pub(crate) fn knows_cgroups(&self) -> bool {
        self.section.knows_cgroups()
    }

    /// Who calls, by the headers of a call and the other end of its connection.
    pub(crate) fn caller(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        now_ms: i64,
    ) -> Result<Caller, ApiError> {
        match bearer(headers)? {
            Some(shown) => self.by_token(shown, now_ms),
            None => self.by_peer(peer, now_ms),
        }
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
            shown: Shown::Token(token),
        })
    }

    /// Who is at the other end of a connection.
    pub(crate) fn by_peer(&self, peer: &Peer, now_ms: i64) -> Result<Caller, ApiError> {
        if let Some(certificate) = &peer.certificate
            && let Some(caller) = self.by_certificate(certificate, now_ms)?
        {
            return Ok(caller);
        }
        let local = peer.local.as_ref();
        let name = local.map_or_else(|| "a caller by TCP".into(), |local| Arc::clone(&local.name));
        let of = |role, account: &str| Caller {
            name: Arc::clone(&name),
            role,
            // Each call asks, and that of nothing allocates nothing.
            account: if account.is_empty() { Arc::default() } else { account.into() },
            shown: Shown::Nothing,
        };
        if !self.section.enforces() {
            return Ok(of(Role::Operator, ""));
        }
        let Some(local) = local else {
            let message = "a call by TCP needs a token: `authorization: Bearer bursar_…`";
            return Err(unauthenticated(message));
        };
        let is_trusted = local.uid == 0 || local.uid == self.own_uid;
        match self.section.local(local, is_trusted) {
            Some(row) => Ok(of(row.role, &row.account)),
            None if is_trusted => Ok(of(Role::Operator, "")),
            None => {
                let message =
                    format!("{name} is nobody here: show a token, or have a row in access.local");
                Err(unauthenticated(&message))
            }
        }
    }

    /// Whose certificate this is; `None`: nobody's, where that matters to nobody.
    fn by_certificate(
        &self,
        certificate: &Arc<Certificate>,
        now_ms: i64,
    ) -> Result<Option<Caller>, ApiError> {
        let names = certificate.names();
        if let Some(why) = certificate.ended(now_ms) {
            let message = format!("the certificate {} {why}", names.shown());
            return Err(unauthenticated(&message));
        }
        match self.section.certificate(names) {
            Some((row, name)) => Ok(Some(Caller {
                name: format!("certificate {name}").into(),
                role: row.role,
                account: row.account.as_str().into(),
                shown: Shown::Certificate(Arc::clone(certificate)),
            })),
            None if !self.section.enforces() => Ok(None),
            None => {
                let message = format!(
                    "the certificate {} is nobody's here: show a token, or have a row in \
                     access.certificate",
                    names.shown()
                );
                Err(unauthenticated(&message))
            }
        }
    }

    /// Who spends by a call of the proxy. What is no token of ours may be meant for the upstream.
    pub(crate) fn spender(
        &self,
        shown: Option<&str>,
        peer: &Peer,
        now_ms: i64,
    ) -> Result<Caller, ApiError> {
        let caller = match shown {
            Some(shown) if shown.starts_with(PREFIX) => self.by_token(shown, now_ms),
            _ if self.section.enforces() && peer.certificate.is_none() => {
                Err(unauthenticated("the call needs a token as its API key: bursar_…"))
            }
            _ => self.by_peer(peer, now_ms),
        }?;
        caller.may_act(Act::Spend)?;
        Ok(caller)
    }

    /// Notes what a caller has reserved, so that it ends with its token.
    pub(crate) fn note_reserved(&self, caller: &Caller, engine: &Engine, reservation: &str) {
        if let Shown::Token(token) = &caller.shown
            && let Ok(id) = convert::parse_reservation_id(engine.store_id, reservation)
        {
            self.reserved.note(&token.id, id);
        }
    }

    /// Notes what tokens have reserved before the daemon was started.
    pub(crate) fn recall_reserved(&self, engine: &Engine) {
        for (id, label) in engine.ledger.pending_labelled(maker::LABEL) {
            if let Maker::Token(token) = Maker::of(Some(&label)) {
                self.reserved.note(token, id);
            }
        }
    }

    /// Ends what tokens hold that are good no more, at what was debited.
    pub(crate) fn end_reserved(&self, engine: &Engine) {
        let now_ms = engine.now().wall_ms;
        let is_good = |id: &str| self.vault.get(id).is_some_and(|it| it.ended(now_ms).is_none());
        self.reserved.end(engine, is_good);
    }

    /// Fails once what a caller came with has ended.
    pub(crate) fn check(&self, caller: &Caller, now_ms: i64) -> Result<(), ApiError> {
        match &caller.shown {
            Shown::Nothing => Ok(()),
            Shown::Token(token) => match self.vault.get(&token.id) {
                Some(token) if token.ended(now_ms).is_none() => Ok(()),
                _ => Err(unauthenticated("the token has ended: ask for another")),
            },
            Shown::Certificate(certificate) => match certificate.ended(now_ms) {
                Some(why) => Err(unauthenticated(&format!("the certificate {why}"))),
                None => Ok(()),
            },
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

    /// Whether it may read of the daemon as a whole: observers and operators of all accounts.
    pub(crate) fn may_oversee(&self) -> Result<(), ApiError> {
        match self.role {
            Role::Agent => Err(self.not_allowed("may not read of the whole sidecar")),
            Role::Observer | Role::Operator => self.may(Act::Read, ""),
        }
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
        if reservation.is_empty() || self.may_use_any(act) {
            return Ok(());
        }
        let whose = engine.whose(reservation)?.ok_or(LedgerError::ReservationNotFound)?;
        self.may_use_one(act, &whose)
    }

    /// Whether it may do this to a reservation that is answered from memory. Where not, the store is
    /// asked, and where that is another's as well, so that it takes as long as for none.
    pub(crate) fn may_use_at_once(
        &self,
        act: Act,
        engine: &Engine,
        reservation: &str,
    ) -> Result<bool, ApiError> {
        if !engine.remembers(reservation) {
            return Ok(false);
        }
        match self.may_use(act, engine, reservation) {
            Err(error) if error.reason == ErrorReason::ReservationNotFound => Ok(false),
            may => may.map(|()| true),
        }
    }

    /// As `may_use`, for one that only the store still has.
    pub(crate) fn may_use_stored(
        &self,
        act: Act,
        engine: &Engine,
        reservation: &str,
    ) -> Result<(), ApiError> {
        self.may_act(act)?;
        if self.may_use_any(act) {
            return Ok(());
        }
        self.may_use_one(act, &engine.whose_stored(reservation)?)
    }

    fn may_use_any(&self, act: Act) -> bool {
        self.account.is_empty() && (act == Act::Read || self.role == Role::Operator)
    }

    /// Another's reservation is answered like one that does not exist. What the sidecar holds to meter
    /// an agent, that agent only reads: it would say that nothing was used.
    fn may_use_one(&self, act: Act, whose: &Whose) -> Result<(), ApiError> {
        if !self.is_bound_to(&whose.account) {
            return Err(LedgerError::ReservationNotFound.into());
        }
        if act != Act::Read && self.role != Role::Operator && whose.is_sidecars {
            let message = "the sidecar made the reservation to meter what it sees: it ends it";
            return Err(ApiError::new(ErrorReason::NotTheOwner, message));
        }
        Ok(())
    }

    /// The accounts that it may ask about of those it asks about.
    pub(crate) fn narrow(&self, account: &str) -> Result<String, ApiError> {
        if account.is_empty() {
            return Ok(self.account.to_string());
        }
        self.may(Act::Read, account)?;
        Ok(account.to_owned())
    }

    /// What is noted of it as the maker of a reservation.
    pub(crate) fn maker(&self) -> Maker<'_> {
        match &self.shown {
            Shown::Token(token) => Maker::Token(&token.id),
            _ => Maker::Other,
        }
    }

    /// When what it came with expires; `None`: it came without.
    fn expires_ms(&self) -> Option<i64> {
        match &self.shown {
            Shown::Nothing => None,
            Shown::Token(token) => Some(token.expires_ms),
            Shown::Certificate(certificate) => Some(certificate.names().expires_ms),
        }
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
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get("authorization") else { return Ok(None) };
    let shown = value.to_str().ok().and_then(|text| text.split_once(' '));
    match shown {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token)),
        _ => Err(unauthenticated("authorization: write `Bearer bursar_…`")),
    }
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(ErrorReason::Unauthenticated, message)
}
