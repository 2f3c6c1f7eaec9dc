//! Restoring accounts: those in use, and those that reservations still name.
//!
//! Where the account of a reservation has retired, its path is opened anew, as the ledger does for a
//! late Commit: without the freeze and the budgets that went with the old one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bursar_ledger::fact::{AccountId, ChainId, Fact};
use bursar_ledger::path::parent;
use rusqlite::{Row, params};

use super::{Chain, NO_TIME_MS, Remembered, Restore};
use crate::error::{Doing, StoreError};
use crate::reservations::{self, Stored};

struct Account {
    id: AccountId,
    path: String,
    automatic: bool,
    frozen: bool,
    /// Why it is frozen, or no longer is.
    reason: String,
    created_ms: i64,
}

impl Restore<'_> {
    pub(super) fn accounts(
        &mut self,
        holding: &[Stored],
        remembered: &Remembered,
        chains: &BTreeMap<ChainId, Chain>,
    ) -> Result<(), StoreError> {
        const IN_USE: &str = "SELECT id, path, automatic, frozen, freeze_reason, created_ms
            FROM accounts WHERE retired_ms IS NULL ORDER BY id";
        let mut told = self.select(IN_USE, (), read_account)?;
        let mut paths: HashMap<String, AccountId> =
            told.iter().map(|account| (account.path.clone(), account.id)).collect();
        self.in_use = told.iter().map(|account| account.id).collect();
        let query = "SELECT DISTINCT account FROM reservations WHERE ended_ms > ?1";
        let mut named: BTreeSet<AccountId> =
            self.select(query, [remembered.from_ms], |row| row.get(0))?.into_iter().collect();
        for sequence in &remembered.parents {
            let stored = reservations::find(self.conn, *sequence)?;
            named.extend(stored.map(|stored| stored.body.reserved.account));
        }
        named.extend(holding.iter().map(|stored| stored.body.reserved.account));
        named.extend(chains.values().map(|chain| chain.account));
        let mut back = Vec::new();
        for id in named.difference(&self.in_use.iter().copied().collect()) {
            let query = "SELECT path FROM accounts WHERE id = ?1";
            let Some(path) = self.select(query, [id], |row| row.get::<_, String>(0))?.pop() else {
                continue;
            };
            let lineage = std::iter::successors(Some(path.as_str()), |path| parent(path));
            // From the top down: by their ids, too, parents come first.
            for path in lineage.collect::<Vec<_>>().into_iter().rev() {
                if !paths.contains_key(path) {
                    let account = self.open_anew(path)?;
                    paths.insert(account.path.clone(), account.id);
                    back.push(account);
                }
            }
            self.stand_ins.insert(*id, paths[&path]);
        }
        self.in_use.extend(back.iter().map(|account| account.id));
        told.extend(back);
        for Account { id, path, automatic, frozen, reason, created_ms } in told {
            let mut facts = vec![Fact::AccountOpened { account: id, path, automatic }];
            if frozen || !reason.is_empty() {
                facts.push(Fact::Frozen { account: id, frozen, reason });
            }
            self.tell(created_ms, facts)?;
        }
        Ok(())
    }

    fn open_anew(&mut self, path: &str) -> Result<Account, StoreError> {
        // As old as the one before, or reservations would seem younger than they are.
        const SINCE: &str = "SELECT max(created_ms) FROM accounts WHERE path = ?1";
        let since = self.select(SINCE, [path], |row| row.get::<_, Option<i64>>(0))?.pop();
        // One above it may be forgotten altogether.
        let created_ms = since.flatten().unwrap_or(NO_TIME_MS);
        *self.max_account += 1;
        let id = *self.max_account;
        // First the id: were the daemon to die in between, it is only lost.
        let taken = "UPDATE meta SET max_account = ?1";
        self.conn.execute(taken, [id]).doing("open an account anew")?;
        let open = "INSERT INTO accounts VALUES (?1, ?2, 1, 0, '', ?3, NULL)";
        self.conn.execute(open, params![id, path, created_ms]).doing("open an account anew")?;
        let (path, reason) = (path.to_owned(), String::new());
        Ok(Account { id, path, automatic: true, frozen: false, reason, created_ms })
    }

    /// The account that is in use for one that may have retired.
    pub(super) fn in_use(&self, account: AccountId) -> AccountId {
        self.stand_ins.get(&account).copied().unwrap_or(account)
    }
}

fn read_account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: row.get(0)?,
        path: row.get(1)?,
        automatic: row.get(2)?,
        frozen: row.get(3)?,
        reason: row.get(4)?,
        created_ms: row.get(5)?,
    })
}
