//! Checks the users' database, with either engine.
use super::{Check, fail, postgres, sqlite};
use crate::config::DatabaseUrl;
use crate::store::users::{self, OpenError, Survey};

pub(super) async fn examine(url: &DatabaseUrl) -> Vec<Check> {
    match users::survey(url).await {
        Ok(Survey::Sqlite(survey)) => sqlite::checks(&survey),
        Ok(Survey::Postgres(survey)) => postgres::checks(&survey),
        Err(error) => {
            let advice = match &error {
                OpenError::Sqlite(error) => sqlite::advice(error),
                OpenError::Postgres(error) => postgres::advice(error),
            };
            vec![fail("database", error.to_string(), advice)]
        }
    }
}
