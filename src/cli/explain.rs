//! Errors of administration as an operator reads them: what to change, and what to do next.
use crate::auth::admin::{AdminError, Refusal};

pub(super) fn error(error: &AdminError) -> String {
    match error {
        AdminError::Ambiguous(_) => format!("{error}: name the user by e-mail address"),
        AdminError::OutOfReach => format!("REDIS_URL is not set: {error}, out of reach from here"),
        AdminError::MustBeOffline => {
            format!("REDIS_URL is not set: {error}. Stop the server, then say --offline")
        }
        AdminError::Contended => {
            format!("{error}; nothing was changed, but its sessions may have ended: try again")
        }
        AdminError::Database(_) => format!("DATABASE_URL: {error}"),
        AdminError::Redis(_) => format!("REDIS_URL: {error}"),
        AdminError::Thread(_) => format!("HASH_CONCURRENCY: {error}"),
        AdminError::NoSuchUser(_)
        | AdminError::NoSuchSession(_)
        | AdminError::Invalid { .. }
        | AdminError::Users(_)
        | AdminError::Hash(_) => error.to_string(),
    }
}

pub(super) fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::ForeignSignature => "the cookie is signed with none of the keys in SESSION_SECRET",
        Refusal::Expired => "the cookie is past its absolute limit",
        Refusal::Ended => "the session has ended, or never was",
    }
}
