//! Moves all accounts from one database to another, of the same or another engine: `authfleet users copy`.
//!
//! An account is copied unchanged, including its id and epoch, so sessions stay alive. The source is read in one
//! transaction, in the order of ids, a batch at a time, so memory doesn't grow with the number of accounts. The target
//! is changed in one transaction, which is committed only if the target's content has the checksum of what was read.
use std::fmt::Write as _;
use std::path::PathBuf;

use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::OpenError;
use super::account::Account;
use super::postgres::copy::Postgres;
use super::sqlite::copy::Sqlite;
use crate::config::DatabaseUrl;

/// How many accounts are read and written at once.
const BATCH: usize = 500;

/// What the operator allows a copy to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyOptions {
    /// The target may lose accounts that the source lacks, or changes that are newer than the source's.
    pub(crate) replace: bool,
    /// Servers may use the databases meanwhile. What they write is not in the copy.
    pub(crate) while_running: bool,
}

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Reads the accounts that the target already has.
    Comparing,
    /// Writes.
    Copying,
    /// Reads the target, to compare checksums.
    Verifying,
}

/// What a copy did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Accounts at the source, and now at the target.
    pub(crate) accounts: u64,
    /// Accounts that the target had before.
    pub(crate) before: u64,
    /// Whether the target already had the same accounts, so that nothing was written.
    pub(crate) unchanged: bool,
    /// SHA-256 of all accounts in the order of their ids, in hexadecimal.
    pub(crate) checksum: String,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("--from: {0}")]
    Source(#[source] OpenError),
    #[error("--to: {0}")]
    Target(#[source] OpenError),
    #[error("--from and --to are the same database")]
    Same,
    #[error(
        "{option}: {count} connections of authfleet servers are open: stop the servers, or what they write is lost \
         (--while-running copies anyway, to try it out)"
    )]
    InUse { option: &'static str, count: u64 },
    #[error(
        "the target has accounts that would be lost: {others} that the source doesn't have, and {newer} with later \
         changes than at the source. Nothing was written. If the source is right, say --replace"
    )]
    WouldLose { others: u64, newer: u64 },
    #[error(
        "the target reads back with another checksum than the source ({wrote} instead of {read}); nothing was kept"
    )]
    Mismatch { read: String, wrote: String },
}

/// One end of a copy: a connection with a transaction on it, which ends with the connection unless it is committed.
enum End {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
}

macro_rules! engine {
    ($end:expr, $it:ident => $call:expr) => {
        match $end {
            End::Sqlite($it) => $call.map_err(OpenError::from),
            End::Postgres($it) => $call.map_err(OpenError::from),
        }
    };
}

impl End {
    async fn open(url: &DatabaseUrl, is_target: bool) -> Result<Self, OpenError> {
        Ok(match url {
            DatabaseUrl::Sqlite(path) => Self::Sqlite(Sqlite::open(path, is_target).await?),
            DatabaseUrl::Postgres(url) => Self::Postgres(Box::new(Postgres::open(url, is_target).await?)),
        })
    }

    /// The number of other connections that call themselves authfleet.
    async fn others(&mut self) -> Result<u64, OpenError> {
        engine!(self, it => it.others().await)
    }

    async fn read(&mut self, after: Option<Uuid>) -> Result<Vec<Account>, OpenError> {
        engine!(self, it => it.read(after, BATCH).await)
    }

    async fn clear(&mut self) -> Result<(), OpenError> {
        engine!(self, it => it.clear().await)
    }

    async fn write(&mut self, accounts: &[Account]) -> Result<(), OpenError> {
        engine!(self, it => it.write(accounts).await)
    }

    async fn commit(self) -> Result<(), OpenError> {
        engine!(self, it => it.commit().await)
    }
}

/// Copies all accounts of `from` to `to`, whose schemas must be up to date. Calls `progress` after each batch, with the
/// stage and the number of accounts done.
///
/// # Errors
///
/// [`CopyError`]. The target is then unchanged.
pub(crate) async fn copy(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    options: CopyOptions,
    mut progress: impl FnMut(Stage, u64),
) -> Result<Copied, CopyError> {
    if identity(from) == identity(to) {
        return Err(CopyError::Same);
    }
    let mut source = End::open(from, false).await.map_err(CopyError::Source)?;
    let mut target = End::open(to, true).await.map_err(CopyError::Target)?;
    if !options.while_running {
        for (option, count) in [
            ("--from", source.others().await.map_err(CopyError::Source)?),
            ("--to", target.others().await.map_err(CopyError::Target)?),
        ] {
            if count > 0 {
                return Err(CopyError::InUse { option, count });
            }
        }
    }

    let difference = Difference::between(&mut source, &mut target, &mut progress).await?;
    let Difference { before, others, newer, .. } = difference;
    if others + newer > 0 && !options.replace {
        return Err(CopyError::WouldLose { others, newer });
    }
    if before > 0 && difference.is_none() {
        return Ok(Copied { accounts: before, before, unchanged: true, checksum: difference.checksum });
    }

    if before > 0 {
        // All rows at once rather than one by one, because a name may have moved from one account to another.
        target.clear().await.map_err(CopyError::Target)?;
    }
    let mut read = Checksum::default();
    let mut after = None;
    loop {
        let batch = source.read(after).await.map_err(CopyError::Source)?;
        let Some(last) = batch.last() else { break };
        after = Some(last.id);
        for account in &batch {
            read.add(account);
        }
        target.write(&batch).await.map_err(CopyError::Target)?;
        progress(Stage::Copying, read.accounts);
    }
    let mut wrote = Checksum::default();
    let mut after = None;
    loop {
        let batch = target.read(after).await.map_err(CopyError::Target)?;
        let Some(last) = batch.last() else { break };
        after = Some(last.id);
        for account in &batch {
            wrote.add(account);
        }
        progress(Stage::Verifying, wrote.accounts);
    }
    let (accounts, read, wrote) = (read.accounts, read.finish(), wrote.finish());
    if read != wrote {
        return Err(CopyError::Mismatch { read, wrote });
    }
    target.commit().await.map_err(CopyError::Target)?;
    Ok(Copied { accounts, before, unchanged: false, checksum: read })
}

/// Identifies a database, to notice a copy of a database into itself.
fn identity(url: &DatabaseUrl) -> (PathBuf, String) {
    match url {
        DatabaseUrl::Sqlite(path) => (path.canonicalize().unwrap_or_else(|_| path.clone()), String::new()),
        DatabaseUrl::Postgres(url) => (PathBuf::new(), format!("{:?} {} {}", url.host, url.port, url.database)),
    }
}

/// How the target's accounts differ from the source's.
#[derive(Debug, Default)]
struct Difference {
    /// Accounts of the target.
    before: u64,
    /// Accounts of the source that the target lacks, or has in an older state.
    missing: u64,
    /// Accounts that only the target has.
    others: u64,
    /// Accounts that are newer at the target.
    newer: u64,
    /// The checksum of the target's accounts.
    checksum: String,
}

impl Difference {
    /// Compares both ends in the order of ids.
    async fn between(
        source: &mut End,
        target: &mut End,
        progress: &mut impl FnMut(Stage, u64),
    ) -> Result<Self, CopyError> {
        let mut found = Self::default();
        let mut checksum = Checksum::default();
        let mut there = Cursor::default();
        if there.peek(target).await.map_err(CopyError::Target)?.is_none() {
            return Ok(found);
        }
        let mut here = Cursor::default();
        loop {
            let left = here.peek(source).await.map_err(CopyError::Source)?;
            let right = there.peek(target).await.map_err(CopyError::Target)?;
            let (take_left, take_right) = match (left, right) {
                (None, None) => break,
                (Some(left), Some(right)) if left.id == right.id => {
                    if (right.epoch, right.updated_at) > (left.epoch, left.updated_at) {
                        found.newer += 1;
                    } else if !left.is(right) {
                        found.missing += 1;
                    }
                    (true, true)
                }
                (Some(left), right) if right.is_none_or(|right| left.id < right.id) => {
                    found.missing += 1;
                    (true, false)
                }
                (_, Some(_)) => {
                    found.others += 1;
                    (false, true)
                }
                (Some(_), None) => unreachable!("the arm before takes it"),
            };
            if take_right {
                if let Some(account) = there.next() {
                    checksum.add(&account);
                }
                if checksum.accounts.is_multiple_of(BATCH as u64) {
                    progress(Stage::Comparing, checksum.accounts);
                }
            }
            if take_left {
                here.next();
            }
        }
        found.before = checksum.accounts;
        found.checksum = checksum.finish();
        Ok(found)
    }

    fn is_none(&self) -> bool {
        self.missing + self.others + self.newer == 0
    }
}

/// The accounts of one end, one after the other.
#[derive(Default)]
struct Cursor {
    batch: std::collections::VecDeque<Account>,
    after: Option<Uuid>,
    is_over: bool,
}

impl Cursor {
    async fn peek(&mut self, end: &mut End) -> Result<Option<&Account>, OpenError> {
        if self.batch.is_empty() && !self.is_over {
            self.batch = end.read(self.after).await?.into();
            self.is_over = self.batch.is_empty();
        }
        Ok(self.batch.front())
    }

    fn next(&mut self) -> Option<Account> {
        let account = self.batch.pop_front()?;
        self.after = Some(account.id);
        Some(account)
    }
}

impl Account {
    fn is(&self, other: &Self) -> bool {
        let checksum = |account| {
            let mut checksum = Checksum::default();
            checksum.add(account);
            checksum.finish()
        };
        checksum(self) == checksum(other)
    }
}

/// SHA-256 over accounts in the order of their ids. It hashes each value with its length, or a mark for NULL.
#[derive(Default)]
struct Checksum {
    hash: Sha256,
    accounts: u64,
}

impl Checksum {
    fn add(&mut self, account: &Account) {
        self.accounts += 1;
        self.bytes(Some(account.id.as_bytes()));
        for text in [
            Some(account.email.as_str()),
            Some(&account.email_key),
            account.email_canonical.as_deref(),
            Some(&account.username),
            Some(&account.username_key),
            account.username_canonical.as_deref(),
            Some(account.password_hash.expose_secret()),
            Some(&account.group_names),
        ] {
            self.bytes(text.map(str::as_bytes));
        }
        for number in [Some(account.epoch), account.disabled_at, Some(account.created_at), Some(account.updated_at)] {
            self.bytes(number.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
        }
    }

    fn bytes(&mut self, value: Option<&[u8]>) {
        let length = value.map_or(u64::MAX, |value| value.len() as u64);
        self.hash.update(length.to_be_bytes());
        self.hash.update(value.unwrap_or_default());
    }

    fn finish(self) -> String {
        self.hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes all");
            text
        })
    }
}
