//! Words errors of administration for an operator: what to change, and what to do next.
use crate::auth::admin::{AdminError, Refusal};
use crate::telemetry::chain;

pub(super) fn error(error: &AdminError) -> String {
    let what = chain(error);
    match error {
        AdminError::Ambiguous(_) => format!("{what}: name the user by e-mail address"),
        AdminError::OutOfReach => format!("REDIS_URL is not set: {what}, out of reach from here"),
        AdminError::MustBeOffline => {
            format!("REDIS_URL is not set: {what}. Stop the server, then use --offline")
        }
        AdminError::Contended => {
            format!("{what}; nothing was changed, but its sessions may have ended: try again")
        }
        AdminError::Database(_) => format!("DATABASE_URL: {what}"),
        AdminError::Redis(_) => format!("REDIS_URL: {what}"),
        AdminError::Thread(_) => format!("HASH_CONCURRENCY: {what}"),
        AdminError::NoSuchUser(_)
        | AdminError::NoSuchSession(_)
        | AdminError::Invalid { .. }
        | AdminError::Users(_)
        | AdminError::Hash(_) => what,
    }
}

pub(super) fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::ForeignSignature => "the cookie is signed with none of the keys in SESSION_SECRET",
        Refusal::Expired => "the cookie is past its absolute limit",
        Refusal::Ended => "the session has ended or never existed",
    }
}
