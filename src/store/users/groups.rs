//! The groups that a user is in.
//!
//! They are stored as one text, sorted, separated by commas: `admins,staff`. Sessions contain the same text, and
//! applications get it in `Remote-Groups`.
use std::fmt;

/// The most bytes of a group's name.
const LONGEST_NAME: usize = 64;
/// The most bytes of all groups of a user as one text, which is part of every answer to a proxy.
const LONGEST_TEXT: usize = 1024;

/// The groups of one user: each once, in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups(String);

/// Why a user can't be put into a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("must be 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit")]
    Name,
    #[error("the user is in as many groups as there is room for (1024 bytes)")]
    TooMany,
}

/// Checks a group's name.
pub(crate) fn check_name(name: &str) -> Result<(), GroupError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if begins && name.len() <= LONGEST_NAME && name.bytes().all(fits) { Ok(()) } else { Err(GroupError::Name) }
}

impl Groups {
    /// Parses the stored text. Parts that aren't valid names are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut names: Vec<_> = text.split(',').filter(|name| check_name(name).is_ok()).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.join(","))
    }

    /// The stored text. Empty without groups.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|name| !name.is_empty())
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.iter().any(|known| known == name)
    }

    /// These groups and another one.
    ///
    /// # Errors
    ///
    /// If the name isn't valid, or the text would be too long.
    pub(crate) fn with(&self, name: &str) -> Result<Self, GroupError> {
        check_name(name)?;
        let more = Self::parse(&format!("{},{name}", self.0));
        if more.0.len() > LONGEST_TEXT { Err(GroupError::TooMany) } else { Ok(more) }
    }

    /// These groups without one.
    #[must_use]
    pub(crate) fn without(&self, name: &str) -> Self {
        let rest: Vec<_> = self.iter().filter(|known| *known != name).collect();
        Self(rest.join(","))
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_kept_in_order_and_once() {
        let groups = Groups::default().with("staff").and_then(|groups| groups.with("admins")).expect("two names");
        assert_eq!(groups.as_str(), "admins,staff");
        assert_eq!(groups.with("staff").expect("a name"), groups);
        assert_eq!(groups.without("admins").as_str(), "staff");
        assert_eq!(groups.without("staff").without("admins"), Groups::default());
        assert!(groups.contains("staff") && !groups.contains("staf") && !groups.contains(""));
        assert_eq!(Groups::parse("staff,,Bad Name,admins,staff"), groups);
        assert_eq!(Groups::default().iter().count(), 0);
    }

    #[test]
    fn names_are_plain_and_bounded() {
        for bad in ["", "a b", "a,b", "Admins", "-a", ".a", "ä", &"a".repeat(65)] {
            assert_eq!(check_name(bad), Err(GroupError::Name), "{bad}");
        }
        let mut groups = Groups::default();
        for n in 10..25 {
            groups = groups.with(&format!("{n}{}", "x".repeat(62))).expect("room for 15 of 65 bytes");
        }
        assert_eq!(groups.with(&"y".repeat(64)), Err(GroupError::TooMany));
    }
}
