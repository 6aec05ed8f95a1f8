//! An account as it is stored, with every column: what a copy reads and writes.
use secrecy::SecretString;
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

/// Every column of `users`, in both engines. A test compares it to the schemas.
pub(super) const COLUMNS: &str = "id, email, email_key, email_canonical, username, username_key, username_canonical, \
     password_hash, epoch, disabled_at, group_names, created_at, updated_at";

/// An account with everything that is stored about it. Times are milliseconds since the Unix epoch.
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

impl Account {
    /// Reads a row with [`COLUMNS`]. The id has a type of its own in each engine, so the caller decodes it.
    pub(super) fn of<R: Row>(id: Uuid, row: &R) -> sqlx::Result<Self>
    where
        &'static str: ColumnIndex<R>,
        for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
        for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    {
        Ok(Self {
            id,
            email: row.try_get("email")?,
            email_key: row.try_get("email_key")?,
            email_canonical: row.try_get("email_canonical")?,
            username: row.try_get("username")?,
            username_key: row.try_get("username_key")?,
            username_canonical: row.try_get("username_canonical")?,
            password_hash: row.try_get::<String, _>("password_hash")?.into(),
            epoch: row.try_get("epoch")?,
            disabled_at: row.try_get("disabled_at")?,
            group_names: row.try_get("group_names")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}
