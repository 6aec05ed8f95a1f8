//! Checks for names of accounts that this release would not accept.
use super::{Check, ok, warn};
use crate::store::users::names::{Unusual, UnusualNames, Why};

/// Reports names that older releases treated as different or accepted, and this one doesn't.
pub(super) fn names(unusual: &UnusualNames) -> Check {
    const NAME: &str = "database.names";
    let mut found: Vec<_> = unusual.first.iter().map(describe).collect();
    let unsaid = unusual.shared + unusual.refused - found.len() as u64;
    if unsaid > 0 {
        found.push(format!("and {unsaid} more"));
    }
    if unusual.pending > 0 {
        found.insert(0, format!("{} names of an older release have no canonical form yet", unusual.pending));
        return warn(
            NAME,
            found.join("; "),
            "run `authfleet migrate`; until then they are found only in the spelling in which they were registered",
        );
    }
    if found.is_empty() {
        return ok(NAME, "every name belongs to one account, in all its spellings");
    }
    warn(
        NAME,
        found.join("; "),
        "nobody is locked out: such an account is found by its name as it was registered. If two accounts belong to \
         one person, delete one: authfleet user delete ID",
    )
}

fn describe(unusual: &Unusual) -> String {
    let Unusual { user_id, field, why } = unusual;
    match why {
        Why::SharedWith(other) => format!("{field} of {user_id} is another spelling of that of {other}"),
        Why::Refused(refused) => format!("{field} of {user_id} {}", refused.message()),
    }
}
