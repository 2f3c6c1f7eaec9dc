//! The tokens: in memory to be looked up, in one file beside the store to outlive the daemon.
//!
//! Of a secret only the hash is kept: 32 random bytes need no slow one. A change is in the file,
//! synced, before it counts; a file that cannot be read keeps the daemon from starting. Who may change
//! what is not decided here.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::Role;
use crate::error::ApiError;
use crate::v1::ErrorReason;

/// How every token begins, so that scanners for leaked secrets know one.
pub(crate) const PREFIX: &str = "bursar_";
/// The most tokens that are good at one time.
const MAX_TOKENS: usize = 10_000;
/// How long one that has ended stays in the list, and how many do.
const KEPT_MS: i64 = 30 * 86_400_000;
const KEPT: usize = 1_000;
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Empty: all.
    pub(crate) account: String,
    pub(crate) creator: String,
    pub(crate) created_ms: i64,
    pub(crate) expires_ms: i64,
    #[serde(default)]
    pub(crate) revoked_ms: Option<i64>,
    /// Of the secret, in hexadecimal digits.
    sha256: String,
}

impl Token {
    /// Why it is good for nothing any more; `None`: it is good.
    pub(crate) fn ended(&self, now_ms: i64) -> Option<&'static str> {
        if self.revoked_ms.is_some() {
            return Some("was revoked");
        }
        (now_ms >= self.expires_ms).then_some("has expired")
    }

    fn end_ms(&self) -> i64 {
        self.revoked_ms.unwrap_or(self.expires_ms)
    }
}

/// What a token is to be.
pub(crate) struct Order {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) account: String,
    pub(crate) creator: String,
    pub(crate) ttl_ms: i64,
}

/// All tokens.
#[derive(Debug)]
pub(crate) struct Vault {
    /// `None`: they are forgotten at the end.
    path: Option<PathBuf>,
    tokens: RwLock<HashMap<String, Arc<Token>>>,
    /// Held while a change is written; meanwhile `tokens` are looked up, and end.
    writing: Mutex<()>,
}

/// The version of the file that this code writes, and the newest that it reads. 1 is the first.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    tokens: Vec<Token>,
}

/// A file of any version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Vault {
    /// Reads the file, if there is one.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<Vault> {
        let tokens = match path.as_deref().map(fs::read) {
            Some(Ok(bytes)) => parse(&bytes)?,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => Vec::new(),
        };
        let by_id = |token: Token| (token.id.clone(), Arc::new(token));
        let tokens = RwLock::new(tokens.into_iter().map(by_id).collect());
        Ok(Vault { path, tokens, writing: Mutex::default() })
    }

    /// The token that somebody shows, whether it is still good or not.
    pub(crate) fn find(&self, shown: &str) -> Option<Arc<Token>> {
        let (id, secret) = shown.strip_prefix(PREFIX)?.split_once('_')?;
        let token = Arc::clone(self.tokens.read().get(id)?);
        // Whoever could tell hashes apart by the time that this takes would learn nothing of a secret.
        (token.sha256 == sha256(secret)).then_some(token)
    }

    /// The token of that id.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Token>> {
        self.tokens.read().get(id).cloned()
    }

    /// All of them, the latest first.
    pub(crate) fn list(&self) -> Vec<Arc<Token>> {
        let mut tokens: Vec<_> = self.tokens.read().values().cloned().collect();
        tokens.sort_by(|a, b| (b.created_ms, &b.id).cmp(&(a.created_ms, &a.id)));
        tokens
    }

    /// Makes a token; returns it with its secret.
    pub(crate) fn create(
        &self,
        order: Order,
        now_ms: i64,
    ) -> Result<(Arc<Token>, String), ApiError> {
        let (id, secret) = (random::<ID_BYTES>()?, random::<SECRET_BYTES>()?);
        let token = Arc::new(Token {
            sha256: sha256(&secret),
            id,
            name: order.name,
            role: order.role,
            account: order.account,
            creator: order.creator,
            created_ms: now_ms,
            expires_ms: now_ms.saturating_add(order.ttl_ms),
            revoked_ms: None,
        });
        self.change(now_ms, |tokens| {
            let good = tokens.values().filter(|token| token.ended(now_ms).is_none());
            if good.count() >= MAX_TOKENS {
                let message = format!("{MAX_TOKENS} tokens are good, which is the most");
                let error = ApiError::new(ErrorReason::TokenLimitReached, message);
                return Err(error.with("max", MAX_TOKENS.to_string()));
            }
            tokens.insert(token.id.clone(), Arc::clone(&token));
            Ok(())
        })?;
        let shown = format!("{PREFIX}{}_{secret}", token.id);
        Ok((token, shown))
    }

    /// Ends a token at once, also where that cannot be written: then only until the daemon ends. One
    /// that has ended already stays as it is, and is written again.
    pub(crate) fn revoke(&self, token: &Token, now_ms: i64) -> Result<Arc<Token>, ApiError> {
        let ended =
            Arc::new(Token { revoked_ms: token.revoked_ms.or(Some(now_ms)), ..token.clone() });
        let insert = |tokens: &mut HashMap<_, _>| {
            tokens.insert(ended.id.clone(), Arc::clone(&ended));
            Ok(())
        };
        insert(&mut self.tokens.write())?;
        self.change(now_ms, insert).map_err(|error| {
            let message = format!(
                "the token {} is revoked, but only until a restart: {}; revoke it again once there is \
                 room",
                ended.id, error.message
            );
            ApiError::new(error.reason, message)
        })?;
        Ok(ended)
    }

    /// Changes the tokens in the file, and then here.
    fn change(
        &self,
        now_ms: i64,
        change: impl Fn(&mut HashMap<String, Arc<Token>>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let change = |tokens: &mut HashMap<String, Arc<Token>>| {
            forget(tokens, now_ms);
            change(tokens)
        };
        let _one_at_a_time = self.writing.lock();
        let mut changed = self.tokens.read().clone();
        change(&mut changed)?;
        if let Some(path) = &self.path {
            let written = write(path, &changed);
            written.map_err(|error| {
                let message = format!("{} cannot be written: {error}", path.display());
                ApiError::new(ErrorReason::StoreUnavailable, message)
            })?;
        }
        // Not by what was written: some may have been revoked since.
        change(&mut self.tokens.write())
    }
}

/// Keeps those only of the tokens that have ended which ended last: each change writes all.
pub(super) fn forget(tokens: &mut HashMap<String, Arc<Token>>, now_ms: i64) {
    tokens.retain(|_, token| now_ms.saturating_sub(token.end_ms()) <= KEPT_MS);
    let mut ended: Vec<_> =
        tokens.values().filter(|token| token.ended(now_ms).is_some()).cloned().collect();
    ended.sort_by_key(|token| std::cmp::Reverse(token.end_ms()));
    for token in ended.iter().skip(KEPT) {
        tokens.remove(&token.id);
    }
}

/// The tokens of a file.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Vec<Token>> {
    let Versioned { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        let message = format!("it has version {version}: use the release that wrote it");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(serde_json::from_slice::<File>(bytes)?.tokens)
}

/// Writes beside the file and takes its name: what is there is whole, whenever the power fails.
fn write(path: &Path, tokens: &HashMap<String, Arc<Token>>) -> io::Result<()> {
    let tokens = tokens.values().map(|token| Token::clone(token)).collect();
    let bytes = serde_json::to_vec_pretty(&File { version: VERSION, tokens })?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let _of_a_crash = fs::remove_file(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(bursar_store::parent(path))?.sync_all()
}

/// So many random bytes, in hexadecimal digits.
pub(crate) fn random<const N: usize>() -> Result<String, ApiError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_unspecified| {
        ApiError::new(ErrorReason::StoreUnavailable, "the system gives no random numbers")
    })?;
    Ok(hex(&bytes))
}

/// The SHA-256 of a text, in hexadecimal digits.
pub(crate) fn sha256(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("half a byte");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn order(name: &str) -> Order {
        Order {
            name: name.into(),
            role: Role::Agent,
            account: "acme".into(),
            creator: "test".into(),
            ttl_ms: 1_000,
        }
    }

    #[test]
    fn a_secret_is_found_again_after_a_restart_and_is_not_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let vault = Vault::open(Some(path.clone())).expect("no file yet");
        let (token, shown) = vault.create(order("ci"), 5).expect("room");
        assert_eq!(fs::metadata(&path).expect("it").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).expect("text");
        assert!(!text.contains(shown.rsplit('_').next().expect("a secret")));
        let again = Vault::open(Some(path)).expect("readable");
        let found = again.find(&shown).expect("known");
        assert_eq!((&found.id, found.ended(1_004)), (&token.id, None));
        assert_eq!(found.ended(1_005), Some("has expired"));
        again.revoke(&found, 7).expect("writable");
        assert_eq!(again.find(&shown).expect("known").ended(8), Some("was revoked"));
    }

    #[test]
    fn what_is_no_secret_is_nobodys() {
        let vault = Vault::open(None).expect("memory");
        let (token, shown) = vault.create(order("ci"), 0).expect("room");
        let other = format!("{PREFIX}{}_{}", token.id, "0".repeat(64));
        for wrong in ["", "bursar_", "bursar__", &shown[7..], &shown[..shown.len() - 1], &other] {
            assert!(vault.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn one_token_too_many_is_refused_and_what_ended_long_ago_makes_room() {
        let vault = Vault::open(None).expect("memory");
        for number in 0..MAX_TOKENS {
            vault.create(order(&number.to_string()), 0).expect("room");
        }
        let refused = vault.create(order("more"), 0).expect_err("full");
        assert_eq!(refused.reason, ErrorReason::TokenLimitReached);
        vault.create(order("later"), 1_000).expect("the others have expired");
        assert_eq!(vault.list().len(), KEPT + 1);
        vault.create(order("much-later"), KEPT_MS + 2_001).expect("room");
        assert_eq!(vault.list().len(), 1);
    }

    #[test]
    fn of_those_that_have_ended_the_last_ones_are_kept() {
        let vault = Vault::open(None).expect("memory");
        let mut revoked = Vec::new();
        for number in 0..KEPT + 10 {
            let now_ms = i64::try_from(number).expect("small");
            let (token, _) = vault.create(order(&number.to_string()), 0).expect("room");
            vault.revoke(&token, now_ms).expect("in memory");
            revoked.push(token.id.clone());
        }
        let (good, _) = vault.create(order("good"), 0).expect("room");
        let kept: Vec<_> = revoked.iter().filter(|id| vault.get(id).is_some()).collect();
        assert_eq!(kept, revoked[10..].iter().collect::<Vec<_>>());
        assert!(vault.get(&good.id).is_some());
    }

    #[test]
    fn a_change_that_cannot_be_written_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let vault = Vault::open(Some(folder.path().join("gone/tokens"))).expect("no file yet");
        assert!(vault.create(order("ci"), 0).is_err());
        assert!(vault.list().is_empty());
    }

    #[test]
    fn a_token_that_cannot_be_revoked_on_the_disk_is_revoked_until_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, away) = (folder.path().join("a/tokens"), folder.path().join("b"));
        fs::create_dir(folder.path().join("a")).expect("a folder");
        let vault = Vault::open(Some(path.clone())).expect("no file yet");
        let (token, shown) = vault.create(order("ci"), 5).expect("room");
        let ended = |vault: &Vault| vault.find(&shown).expect("known").ended(8);
        fs::rename(folder.path().join("a"), &away).expect("moved");
        let told = vault.revoke(&token, 7).expect_err("there is no folder");
        assert!(told.message.contains("only until a restart"), "{told}");
        assert_eq!(ended(&vault), Some("was revoked"));
        fs::rename(&away, folder.path().join("a")).expect("moved back");
        assert_eq!(ended(&Vault::open(Some(path.clone())).expect("readable")), None);
        vault.revoke(&token, 8).expect("writable");
        let again = Vault::open(Some(path)).expect("readable");
        assert_eq!(ended(&again), Some("was revoked"));
    }

    #[test]
    fn while_a_change_is_written_tokens_are_known_and_end() {
        let vault = Vault::open(None).expect("memory");
        let (token, shown) = vault.create(order("ci"), 0).expect("room");
        let writing = vault.writing.lock();
        std::thread::scope(|scope| {
            scope.spawn(|| vault.revoke(&token, 1).expect("written in the end"));
            let is_revoked = || vault.find(&shown).expect("known").ended(2).is_some();
            let was_at_once = (0..10_000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                is_revoked()
            });
            drop(writing);
            assert!(was_at_once, "revoked while another change was written");
        });
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        const EACH: usize = 40;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let vault = Vault::open(Some(path.clone())).expect("no file yet");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let (token, _) = vault.create(order("ci"), 0).expect("room");
                        vault.revoke(&token, 1).expect("written");
                    }
                });
            }
        });
        for vault in [vault, Vault::open(Some(path)).expect("readable")] {
            let tokens = vault.list();
            assert_eq!(tokens.len(), 4 * EACH);
            assert!(tokens.iter().all(|token| token.revoked_ms == Some(1)));
        }
    }

    #[test]
    fn a_damaged_file_is_told_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        for text in ["", "{", r#"{"version": 2, "tokens": []}"#, r#"{"version": 1, "tokens": [1]}"#]
        {
            fs::write(&path, text).expect("writable");
            assert!(Vault::open(Some(path.clone())).is_err(), "{text}");
        }
    }
}
