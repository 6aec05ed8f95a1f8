//! An account as it is stored, with every column: what a copy reads and writes.
use secrecy::SecretString;
use uuid::Uuid;

/// Every column of `users`, in both engines. A test compares it to the schemas.
pub(super) const COLUMNS: &str = "id, email, email_key, email_canonical, username, username_key, username_canonical, \
     password_hash, epoch, disabled_at, group_names, created_at, updated_at";

/// An account with everything that is stored of it. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) id: Uuid,
    pub(super) email: String,
    pub(super) email_key: String,
    pub(super) email_canonical: Option<String>,
    pub(super) username: String,
    pub(super) username_key: String,
    pub(super) username_canonical: Option<String>,
    pub(super) password_hash: SecretString,
    pub(super) epoch: i64,
    pub(super) disabled_at: Option<i64>,
    pub(super) group_names: String,
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
}
