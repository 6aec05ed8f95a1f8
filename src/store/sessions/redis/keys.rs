//! The names of the keys of sessions, in both formats. The table of them is in [`super`].
use uuid::Uuid;

use crate::config::SessionFormat;
use crate::store::sessions::place::bucket;
use crate::store::sessions::{SessionId, SessionKey};

/// The beginning of all keys of sessions.
pub(super) const SESSIONS: &str = "session:";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The name of a session's key. Written out, because every check makes one.
pub(in crate::store::sessions) fn session_key(key: SessionKey) -> String {
    let mut text = String::with_capacity(SESSIONS.len() + 38 + 1 + 22);
    text.push_str("session:{");
    push_place(&mut text, key.user_id, key.format);
    text.push_str("}:");
    text.push_str(key.session_id.as_str());
    text
}

/// What stands between the braces: the user's id, or the number of the user's bucket.
fn push_place(text: &mut String, user_id: Uuid, format: SessionFormat) {
    match format {
        SessionFormat::Classic => text.push_str(user_id.hyphenated().encode_lower(&mut [0; 36])),
        SessionFormat::Compact => {
            let bucket = bucket(user_id);
            for shift in [12, 8, 4, 0] {
                text.push(char::from(HEX[usize::from((bucket >> shift) & 15)]));
            }
        }
    }
}

/// The keys of a user in one format. All of them are in one slot.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::sessions) struct Keys {
    pub(super) user_id: Uuid,
    pub(super) format: SessionFormat,
}

impl Keys {
    pub(in crate::store::sessions) fn of(user_id: Uuid, format: SessionFormat) -> Self {
        Self { user_id, format }
    }

    /// What the keys of the user's sessions begin with. In the compact format others' do as well.
    pub(in crate::store::sessions) fn prefix(self) -> String {
        let mut text = "session:{".to_owned();
        push_place(&mut text, self.user_id, self.format);
        text.push_str("}:");
        text
    }

    /// The index. In the compact format it is that of all users of the bucket.
    pub(super) fn index(self) -> String {
        let mut text = "user:{".to_owned();
        push_place(&mut text, self.user_id, self.format);
        text.push_str("}:sessions");
        text
    }

    pub(super) fn fence(self) -> String {
        self.own("fence")
    }

    pub(super) fn confirm(self) -> String {
        self.own("confirm")
    }

    pub(super) fn unconfirmed(self, session_id: SessionId) -> String {
        self.own(&format!("unconfirmed:{session_id}"))
    }

    pub(in crate::store::sessions) fn code(self, hash: &str) -> String {
        self.own(&format!("code:{hash}"))
    }

    /// A key of this user alone.
    fn own(self, name: &str) -> String {
        let mut text = "user:{".to_owned();
        push_place(&mut text, self.user_id, self.format);
        text.push_str("}:");
        if self.format == SessionFormat::Compact {
            text.push_str(self.user_id.hyphenated().encode_lower(&mut [0; 36]));
            text.push(':');
        }
        text.push_str(name);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_user_share_what_is_between_the_braces() {
        let user_id: Uuid = "01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7".parse().expect("an id");
        let session_id = SessionId::parse("q83vEjRWeJASNFZ4kBI0Vg").expect("an id");
        let names = |format| {
            let keys = Keys::of(user_id, format);
            let key = session_key(SessionKey { user_id, session_id, format });
            assert_eq!(key, format!("{}{session_id}", keys.prefix()));
            [key, keys.index(), keys.fence(), keys.confirm(), keys.unconfirmed(session_id), keys.code("5f")]
        };
        assert_eq!(
            names(SessionFormat::Classic),
            [
                "session:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:q83vEjRWeJASNFZ4kBI0Vg",
                "user:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:sessions",
                "user:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:fence",
                "user:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:confirm",
                "user:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:unconfirmed:q83vEjRWeJASNFZ4kBI0Vg",
                "user:{01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7}:code:5f",
            ]
        );
        assert_eq!(
            names(SessionFormat::Compact),
            [
                "session:{2b90}:q83vEjRWeJASNFZ4kBI0Vg".to_owned(),
                "user:{2b90}:sessions".to_owned(),
                format!("user:{{2b90}}:{user_id}:fence"),
                format!("user:{{2b90}}:{user_id}:confirm"),
                format!("user:{{2b90}}:{user_id}:unconfirmed:q83vEjRWeJASNFZ4kBI0Vg"),
                format!("user:{{2b90}}:{user_id}:code:5f"),
            ]
        );
    }
}
