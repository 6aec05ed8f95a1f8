//! Accounts without canonical names. Only `users copy` adds them, from a SQLite database that older releases filled.
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::connector::Session;
use crate::store::users::names::{Unusual, UnusualNames, Why, canonical};

/// How many accounts are listed by id. The others are only counted.
const NAMED: usize = 10;

/// Finds the names without canonical form.
pub(super) async fn unusual(session: &mut Session) -> sqlx::Result<UnusualNames> {
    let mut found = UnusualNames::default();
    let rows = sqlx::query(
        "SELECT id, email, email_canonical, username, username_canonical FROM users \
         WHERE email_canonical IS NULL OR username_canonical IS NULL ORDER BY id",
    )
    .persistent(false)
    .fetch_all(session.db())
    .await?;
    for row in rows {
        for (field, kept) in [("email", "email_canonical"), ("username", "username_canonical")] {
            if row.try_get::<Option<&str>, _>(kept)?.is_none() {
                note(&mut found, session, &row, field).await?;
            }
        }
    }
    Ok(found)
}

async fn note(found: &mut UnusualNames, session: &mut Session, row: &PgRow, field: &'static str) -> sqlx::Result<()> {
    let why = match canonical(row.try_get(field)?) {
        Err(refused) => Why::Refused(refused),
        Ok(name) => {
            let statement = match field {
                "email" => "SELECT id FROM users WHERE email_canonical = $1",
                _ => "SELECT id FROM users WHERE username_canonical = $1",
            };
            let holder: Option<Uuid> =
                sqlx::query_scalar(statement).persistent(false).bind(name).fetch_optional(session.db()).await?;
            let Some(holder) = holder else {
                found.pending += 1;
                return Ok(());
            };
            Why::SharedWith(holder)
        }
    };
    *(if let Why::Refused(_) = why { &mut found.refused } else { &mut found.shared }) += 1;
    if found.first.len() < NAMED {
        found.first.push(Unusual { user_id: row.try_get("id")?, field, why });
    }
    Ok(())
}
