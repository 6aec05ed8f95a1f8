//! How the table of variables works: [`settings!`] turns a struct whose fields are variables into that struct, the code
//! that reads it, and its rows in [`VARIABLES`].
use std::sync::LazyLock;

use super::Config;

/// A variable that authfleet reads. `NAME_FILE` is read too, for every one of them.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    /// Its name in the environment.
    pub(super) name: &'static str,
    /// The heading that begins with this variable, if one does.
    pub(super) heading: Option<&'static str>,
    /// What holds when it is not set.
    pub(super) default: DefaultValue,
    /// What it does, in a sentence or two of Markdown.
    pub(super) help: &'static str,
    /// Which values are valid.
    pub(super) accepted: String,
    /// Whether replicas may differ in it.
    pub(super) scope: Scope,
    /// Whether its value must never be shown.
    pub(super) secret: bool,
    /// Two valid values.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests set every variable to each of these"))]
    pub(super) examples: [String; 2],
}

/// What holds when a variable is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultValue {
    /// This text, as if it had been set.
    Text(&'static str),
    /// Something that is found out at start, or nothing. These words describe it.
    Described(&'static str),
}

/// Whether the replicas of one fleet may differ in a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Each replica may have its own value: names, addresses, sizes of pools and queues, logging.
    Replica,
    /// All replicas must have the same value. Otherwise a session that one accepts has ended at another, or a password
    /// that one takes is refused by the next. [`Config::fingerprint`] covers these variables.
    Fleet,
    /// All replicas must reach the same store, which may have several addresses.
    Store,
}

/// Every variable, in the order in which they are shown.
pub(super) static VARIABLES: LazyLock<Vec<Variable>> = LazyLock::new(|| {
    let mut table = Vec::new();
    Config::describe(&mut table);
    table
});

impl Variable {
    /// The row of `name`.
    ///
    /// # Panics
    ///
    /// If the table has none.
    pub(super) fn named(name: &str) -> &'static Self {
        VARIABLES.iter().find(|variable| variable.name == name).expect("a name from VARIABLES")
    }
}

/// The type of a field whose variable has values of type `T`: `T`, or `Option<T>` where the variable may be absent.
pub(super) trait Field<T> {
    fn from_value(value: T) -> Self;
    fn value(&self) -> Option<&T>;
}

impl<T> Field<T> for T {
    fn from_value(value: T) -> Self {
        value
    }

    fn value(&self) -> Option<&T> {
        Some(self)
    }
}

impl<T> Field<T> for Option<T> {
    fn from_value(value: T) -> Self {
        Some(value)
    }

    fn value(&self) -> Option<&T> {
        self.as_ref()
    }
}

/// Declares a struct of settings. Above each field stands what it is:
///
/// - `#[setting("NAME", values: FORMAT, default: "TEXT", scope: SCOPE)]`: a variable. `FORMAT` is one of
///   [`super::formats`], `SCOPE` a variant of [`Scope`]. The field's documentation is the variable's help.
/// - `default: "WORDS" => |given| VALUE` instead, where the default is no text: `WORDS` describe it, the closure makes
///   it out of `given` ([`super::sources::Values`]) and the fields above.
/// - `heading: "WORDS"` after the name, where a new part of the table begins.
/// - `#[setting(group)]`: a struct of settings.
/// - `#[setting(derived)]`: no variable; filled in once all are read.
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub(crate) struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                #[setting($($spec:tt)+)]
                pub $field:ident: $type:ty,
            )+
        }
    ) => {
        $(#[$attribute])*
        pub(crate) struct $name {
            $(
                $(#[doc = $help])+
                pub $field: $type,
            )+
        }

        impl $name {
            /// Adds the rows of these variables to the table.
            pub(super) fn describe(table: &mut Vec<Variable>) {
                $( setting!(describe(table, concat!($($help),+)) $type, $($spec)+); )+
            }

            /// Reads these variables. Notes each problem and goes on with a placeholder.
            pub(super) fn read(given: &mut Values<'_>) -> Self {
                $( let $field: $type = setting!(read(given) $type, $($spec)+); )+
                Self { $($field),+ }
            }

            /// Adds the values in force, secrets masked, in the order of the table.
            pub(super) fn show(&self, shown: &mut Vec<(&'static str, String)>) {
                $( setting!(show(shown, &self.$field) $type, $($spec)+); )+
            }
        }
    };
}

/// What [`settings!`] does with one field.
macro_rules! setting {
    (describe($table:ident, $help:expr) $type:ty, group) => { <$type>::describe($table); };
    (read($given:ident) $type:ty, group) => { <$type>::read($given) };
    (show($shown:ident, $value:expr) $type:ty, group) => { <$type>::show($value, $shown); };

    (describe($table:ident, $help:expr) $type:ty, derived) => {};
    (read($given:ident) $type:ty, derived) => { <$type>::default() };
    (show($shown:ident, $value:expr) $type:ty, derived) => {};

    (describe($table:ident, $help:expr) $type:ty, $name:literal $(, heading: $heading:literal)?,
        values: $format:expr, default: $default:literal, scope: $scope:ident) => {
        setting!(row($table, $help, DefaultValue::Text($default)) $type, $name, [$($heading)?], $format, $scope);
    };
    (describe($table:ident, $help:expr) $type:ty, $name:literal $(, heading: $heading:literal)?,
        values: $format:expr, default: $words:literal => $compute:expr, scope: $scope:ident) => {
        setting!(row($table, $help, DefaultValue::Described($words)) $type, $name, [$($heading)?], $format, $scope);
    };
    (row($table:ident, $help:expr, $default:expr) $type:ty, $name:literal, [$($heading:literal)?], $format:expr,
        $scope:ident) => {
        let format = Format::of_field::<$type>($format);
        let heading: &[&str] = &[$($heading)?];
        $table.push(Variable {
            name: $name,
            heading: heading.first().copied(),
            default: $default,
            help: $help.trim_ascii_start(),
            accepted: format.accepted,
            scope: Scope::$scope,
            secret: format.secret,
            examples: format.examples,
        });
    };

    (read($given:ident) $type:ty, $name:literal $(, heading: $heading:literal)?,
        values: $format:expr, default: $default:literal, scope: $scope:ident) => {
        <$type as Field<_>>::from_value($given.read($name, &Format::of_field::<$type>($format), $default))
    };
    (read($given:ident) $type:ty, $name:literal $(, heading: $heading:literal)?,
        values: $format:expr, default: $words:literal => $compute:expr, scope: $scope:ident) => {
        match $given.read_optional($name, &Format::of_field::<$type>($format)) {
            Some(value) => <$type as Field<_>>::from_value(value),
            None => $given.compute::<$type>($compute),
        }
    };

    (show($shown:ident, $value:expr) $type:ty, $name:literal $(, heading: $heading:literal)?,
        values: $format:expr, $($rest:tt)+) => {
        let format = Format::of_field::<$type>($format);
        $shown.push(($name, <$type as Field<_>>::value($value).map(format.show).unwrap_or_default()));
    };
}

pub(super) use {setting, settings};
