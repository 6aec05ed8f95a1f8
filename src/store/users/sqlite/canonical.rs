//! Canonical names for accounts that were created by releases without them.
//!
//! `authfleet migrate` fills them in. Some accounts have names that are the same by the present rule but differed by
//! the older one, and none of them may be lost. One gets the canonical name: the one that is already spelt that way, or
//! else the oldest. The others stay without, and are found by the older rule as before.
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::store::users::names::{self, RefusedName, Unusual, UnusualNames, Why};

/// The number of rows per transaction. It takes a few milliseconds, so that registrations of a running fleet can go on.
const BATCH: u32 = 500;
/// How many accounts are listed by id. The others are only counted.
const NAMED: usize = 10;

/// The names in a row.
struct Names {
    id: Uuid,
    fields: [Field; 2],
}

struct Field {
    name: &'static str,
    key: String,
    is_filled: bool,
    canonical: Result<String, RefusedName>,
}

impl FromRow<'_, SqliteRow> for Names {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let field = |name: &'static str, written: &str, key: &str, canonical: &str| {
            let written: &str = row.try_get(written)?;
            let is_filled = row.try_get::<Option<&str>, _>(canonical)?.is_some();
            Ok::<_, sqlx::Error>(Field {
                name,
                key: row.try_get(key)?,
                is_filled,
                canonical: names::canonical(written),
            })
        };
        Ok(Self {
            id: row.try_get::<&str, _>("id")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            fields: [
                field("email", "email", "email_key", "email_canonical")?,
                field("username", "username", "username_key", "username_canonical")?,
            ],
        })
    }
}

/// Fills in the missing canonical names as far as possible, and returns how many it filled in. It is safe to run while
/// servers run, and to run again.
pub(super) async fn fill(db: &mut SqliteConnection) -> sqlx::Result<u64> {
    let mut filled = 0;
    // First the names that are spelt in the canonical way, then the oldest.
    for spelt_so in [true, false] {
        let mut after = String::new();
        loop {
            let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
            let rows = batch(&mut transaction, &after).await?;
            let Some(last) = rows.last() else { break };
            after = last.id.to_string();
            for Names { id, fields } in &rows {
                for field in fields.iter().filter(|field| !field.is_filled) {
                    let Ok(canonical) = &field.canonical else { continue };
                    if (*canonical == field.key) != spelt_so {
                        continue;
                    }
                    // Does nothing if another account has the name, because the column is unique.
                    let statement = match field.name {
                        "email" => "UPDATE OR IGNORE users SET email_canonical = ?2 WHERE id = ?1",
                        _ => "UPDATE OR IGNORE users SET username_canonical = ?2 WHERE id = ?1",
                    };
                    let done =
                        sqlx::query(statement).bind(id.to_string()).bind(canonical).execute(&mut *transaction).await?;
                    filled += done.rows_affected();
                }
            }
            transaction.commit().await?;
        }
    }
    Ok(filled)
}

/// Finds the names without canonical form.
pub(super) async fn unusual(db: &mut SqliteConnection) -> sqlx::Result<UnusualNames> {
    let (mut found, mut after) = (UnusualNames::default(), String::new());
    loop {
        let rows = batch(db, &after).await?;
        let Some(last) = rows.last() else { return Ok(found) };
        after = last.id.to_string();
        for Names { id, fields } in rows {
            for field in fields.into_iter().filter(|field| !field.is_filled) {
                let why = match field.canonical {
                    Err(refused) => Why::Refused(refused),
                    Ok(canonical) => {
                        let Some(holder) = holder(db, field.name, &canonical).await? else {
                            found.pending += 1;
                            continue;
                        };
                        Why::SharedWith(holder)
                    }
                };
                *(if let Why::Refused(_) = why { &mut found.refused } else { &mut found.shared }) += 1;
                if found.first.len() < NAMED {
                    found.first.push(Unusual { user_id: id, field: field.name, why });
                }
            }
        }
    }
}

async fn holder(db: &mut SqliteConnection, field: &str, canonical: &str) -> sqlx::Result<Option<Uuid>> {
    let statement = match field {
        "email" => "SELECT id FROM users WHERE email_canonical = ?1",
        _ => "SELECT id FROM users WHERE username_canonical = ?1",
    };
    let id: Option<String> = sqlx::query_scalar(statement).bind(canonical).fetch_optional(db).await?;
    id.map(|id| id.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))).transpose()
}

async fn batch(db: &mut SqliteConnection, after: &str) -> sqlx::Result<Vec<Names>> {
    sqlx::query_as(
        "SELECT id, email, email_key, email_canonical, username, username_key, username_canonical FROM users \
         WHERE id > ?1 AND (email_canonical IS NULL OR username_canonical IS NULL) ORDER BY id LIMIT ?2",
    )
    .bind(after)
    .bind(BATCH)
    .fetch_all(db)
    .await
}
