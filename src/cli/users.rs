//! `user …`.
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use uuid::Uuid;

use super::{USAGE, answer, explain, fail, printable, prompt, table};
use crate::auth::admin::{Admin, AdminError, Changed};
use crate::store::users::User;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List accounts, oldest first.
    List {
        /// List at most this many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// List the accounts after this id, at which the last list ended.
        #[arg(long, value_name = "ID")]
        after: Option<Uuid>,
        #[command(flatten)]
        output: Output,
    },
    /// Show an account.
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Create an account. The password is asked for, or read from standard input.
    Create {
        /// The e-mail address.
        email: String,
        /// The username. Derived from the e-mail address if not given.
        #[arg(long)]
        username: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Refuse an account's logins, and end its sessions on all replicas at once.
    Disable {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show and change the groups that an account is in. Access rules can name groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Let a disabled account sign in again.
    Enable {
        #[command(flatten)]
        target: Target,
    },
    /// Set an account's password, and end its sessions on all replicas at once. The password is asked for, or read from
    /// standard input.
    SetPassword {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        reach: Reach,
    },
    /// Delete an account, and end its sessions on all replicas at once. This can't be undone.
    Delete {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        reach: Reach,
        /// Don't ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Put an account into a group, and end its sessions on all replicas at once, since they carry its groups.
    Add {
        #[command(flatten)]
        target: Target,
        /// The group: letters a-z, digits, '.', '_' and '-'.
        group: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Take an account out of a group, and end its sessions on all replicas at once.
    Remove {
        #[command(flatten)]
        target: Target,
        /// The group.
        group: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// List the groups that an account is in.
    List {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// Id, e-mail address or username.
    user: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Reach {
    #[arg(
        long,
        help = "Without REDIS_URL, sessions are in the server's memory and can't be ended from here: continue anyway, \
                because no server is running"
    )]
    offline: bool,
}

/// An account, for scripts.
#[derive(Debug, Serialize)]
struct Account<'a> {
    user_id: Uuid,
    email: &'a str,
    username: &'a str,
    created_at: String,
    disabled_at: Option<String>,
    groups: Vec<&'a str>,
    /// For example `argon2id` or `bcrypt`. Never the hash.
    password_scheme: &'a str,
}

impl<'a> Account<'a> {
    fn of(user: &'a User) -> Self {
        Self {
            user_id: user.id,
            email: &user.email,
            username: &user.username,
            created_at: user.created_at.to_string(),
            disabled_at: user.disabled_at.map(|time| time.to_string()),
            groups: user.groups.iter().collect(),
            password_scheme: scheme(user.password_hash.expose_secret()),
        }
    }

    fn state(&self) -> String {
        self.disabled_at.as_ref().map_or_else(|| "enabled".to_owned(), |time| format!("disabled since {time}"))
    }
}

fn scheme(hash: &str) -> &str {
    match hash.split('$').nth(1) {
        Some("2a" | "2b" | "2y") => "bcrypt",
        Some(name) if name.starts_with("argon2") => name,
        _ => "unknown",
    }
}

/// A change, for scripts.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    user_id: Uuid,
    username: &'a str,
    changed: bool,
    /// Absent if sessions could not be reached, or the command ends none.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions_ended: Option<u32>,
}

pub(super) async fn run(admin: &Admin, command: Command) -> Result<ExitCode, AdminError> {
    match command {
        Command::List { limit, after, output } => list(admin, after, limit, output.json).await,
        Command::Show { target } => show(admin, &target).await,
        Command::Create { email, username, output } => create(admin, &email, username.as_deref(), output.json).await,
        Command::Disable { target, reach } => {
            let Some(offline) = reach.checked(admin) else { return Ok(contradiction()) };
            let user = admin.user(&target.user).await?;
            let changed = admin.disable(&user, offline).await?;
            let word = if changed.user.disabled_at.is_none() { "disabled" } else { "was disabled already" };
            Ok(target.done(admin, &changed, changed.user.disabled_at.is_none(), word))
        }
        Command::Group(command) => group(admin, command).await,
        Command::Enable { target } => {
            let user = admin.user(&target.user).await?;
            let changed = admin.enable(&user).await?;
            let outcome = Outcome { user_id: user.id, username: &user.username, changed, sessions_ended: None };
            let word = if changed { "enabled" } else { "was not disabled" };
            Ok(answer(target.output.json, &outcome, || format!("{}: {word}", line(&user))))
        }
        Command::SetPassword { target, reach } => {
            let Some(offline) = reach.checked(admin) else { return Ok(contradiction()) };
            // Fails before the operator types a password.
            admin.endable(offline)?;
            let user = admin.user(&target.user).await?;
            let password = match prompt::new_password() {
                Ok(password) => password,
                Err(why) => return Ok(fail(why, USAGE)),
            };
            let changed = admin.set_password(&user, password, offline).await?;
            Ok(target.done(admin, &changed, true, "password set"))
        }
        Command::Delete { target, reach, yes } => {
            let Some(offline) = reach.checked(admin) else { return Ok(contradiction()) };
            admin.endable(offline)?;
            let user = admin.user(&target.user).await?;
            match yes.then_some(true).or_else(|| prompt::confirmed(&format!("Delete {}?", line(&user)))) {
                Some(true) => {}
                Some(false) => return Ok(fail("not deleted", ExitCode::FAILURE)),
                None => return Ok(fail("there is no terminal to ask on: use --yes", USAGE)),
            }
            let changed = admin.delete(&user, offline).await?;
            Ok(target.done(admin, &changed, true, "deleted"))
        }
    }
}

impl Reach {
    /// The value of `--offline`; `None` if sessions can be reached, because then it would leave them alive.
    fn checked(&self, admin: &Admin) -> Option<bool> {
        (!(self.offline && admin.reaches_sessions())).then_some(self.offline)
    }
}

fn contradiction() -> ExitCode {
    fail("--offline is for sessions in memory, and REDIS_URL is set", USAGE)
}

impl Target {
    fn done(&self, admin: &Admin, change: &Changed, changed: bool, word: &str) -> ExitCode {
        let sessions_ended = admin.reaches_sessions().then_some(change.sessions_ended);
        let Changed { user, .. } = change;
        let outcome = Outcome { user_id: user.id, username: &user.username, changed, sessions_ended };
        answer(self.output.json, &outcome, || match sessions_ended {
            Some(count) => format!("{}: {word}, {}", line(user), sessions(count)),
            None => format!("{}: {word}", line(user)),
        })
    }
}

fn line(user: &User) -> String {
    printable(&format!("{} <{}> {}", user.username, user.email, user.id))
}

fn sessions(count: u32) -> String {
    if count == 1 { "1 session ended".to_owned() } else { format!("{count} sessions ended") }
}

async fn list(admin: &Admin, after: Option<Uuid>, limit: u32, json: bool) -> Result<ExitCode, AdminError> {
    #[derive(Serialize)]
    struct Page<'a> {
        users: Vec<Account<'a>>,
        /// The id to continue after; `null` at the end.
        next: Option<Uuid>,
    }

    // Asks for one more, to see whether there are more.
    let mut users = admin.list_users(after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let is_cut = users.len() > limit;
    users.truncate(limit);
    let next = users.last().filter(|_| is_cut).map(|user| user.id);
    let page = Page { users: users.iter().map(Account::of).collect(), next };
    let done = answer(json, &page, || {
        let mut rows = vec![["ID", "USERNAME", "EMAIL", "CREATED", "STATE"].map(str::to_owned).to_vec()];
        rows.extend(page.users.iter().map(|user| {
            let id = user.user_id.to_string();
            vec![id, printable(user.username), printable(user.email), user.created_at.clone(), user.state()]
        }));
        table(&rows)
    });
    if let (Some(next), false) = (next, json) {
        eprintln!("more: --after {next}");
    }
    Ok(done)
}

async fn show(admin: &Admin, target: &Target) -> Result<ExitCode, AdminError> {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        account: Account<'a>,
        /// The number of living sessions. `null` if they can't be reached.
        sessions: Option<usize>,
    }

    let user = admin.user(&target.user).await?;
    let sessions = match admin.list_sessions(user.id).await {
        Ok(sessions) => Some(sessions.len()),
        Err(error) => {
            eprintln!("warning: {}", explain::error(&error));
            None
        }
    };
    let shown = Shown { account: Account::of(&user), sessions };
    Ok(answer(target.output.json, &shown, || {
        let Shown { account, sessions } = &shown;
        let rows = [
            ("id", account.user_id.to_string()),
            ("username", printable(account.username)),
            ("email", printable(account.email)),
            ("created", account.created_at.clone()),
            ("state", account.state()),
            ("groups", account.groups.join(", ")),
            ("password", account.password_scheme.to_owned()),
            ("sessions", sessions.map_or_else(|| "unknown".to_owned(), |count| count.to_string())),
        ];
        table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
    }))
}

async fn group(admin: &Admin, command: GroupCommand) -> Result<ExitCode, AdminError> {
    #[derive(Serialize)]
    struct Listed<'a> {
        user_id: Uuid,
        username: &'a str,
        groups: Vec<&'a str>,
    }

    let (target, group, reach, is_member) = match command {
        GroupCommand::Add { target, group, reach } => (target, group, reach, true),
        GroupCommand::Remove { target, group, reach } => (target, group, reach, false),
        GroupCommand::List { target } => {
            let user = admin.user(&target.user).await?;
            let groups = user.groups.iter().collect();
            let listed = Listed { user_id: user.id, username: &user.username, groups };
            return Ok(answer(target.output.json, &listed, || listed.groups.join("\n")));
        }
    };
    let Some(offline) = reach.checked(admin) else { return Ok(contradiction()) };
    let user = admin.user(&target.user).await?;
    let changed = if is_member {
        admin.add_group(&user, &group, offline).await?
    } else {
        admin.remove_group(&user, &group, offline).await?
    };
    let word = match (is_member, changed.is_some()) {
        (true, true) => format!("is in {group} now"),
        (true, false) => format!("was in {group} already"),
        (false, true) => format!("is no longer in {group}"),
        (false, false) => format!("was not in {group}"),
    };
    let Some(changed) = changed else {
        let outcome = Outcome { user_id: user.id, username: &user.username, changed: false, sessions_ended: None };
        return Ok(answer(target.output.json, &outcome, || format!("{}: {word}", line(&user))));
    };
    Ok(target.done(admin, &changed, true, &word))
}

async fn create(admin: &Admin, email: &str, username: Option<&str>, json: bool) -> Result<ExitCode, AdminError> {
    Admin::names(email, username)?;
    let password = match prompt::new_password() {
        Ok(password) => password,
        Err(why) => return Ok(fail(why, USAGE)),
    };
    let user = admin.create(email, username, password).await?;
    Ok(answer(json, &Account::of(&user), || format!("{}: created", line(&user))))
}
