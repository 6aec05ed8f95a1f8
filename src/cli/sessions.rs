//! `session …`.
use std::process::ExitCode;

use clap::Subcommand;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use uuid::Uuid;

use super::users::Output;
use super::{USAGE, answer, explain, fail, printable, prompt, table};
use crate::auth::admin::{Admin, AdminError, Inspection};
use crate::auth::token::TEXT_LENGTH;
use crate::store::sessions::{SessionEntry, SessionId};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List a user's living sessions, newest first.
    List {
        /// Id, e-mail address or username.
        user: String,
        #[command(flatten)]
        output: Output,
    },
    /// End a session, or all of a user's, on all replicas at once.
    Revoke {
        /// The session's id.
        #[arg(value_parser = session_id, allow_hyphen_values = true, required_unless_present = "user")]
        session_id: Option<SessionId>,
        /// All sessions of the user with this id, e-mail address or username.
        #[arg(long, conflicts_with = "session_id")]
        user: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show everything about a session, and whether a server would accept it, without renewing it. Exit code 1 if it
    /// would be refused.
    Inspect {
        /// A session's id. Without it, or with `-`, the command asks for a cookie value or an id, or reads one from
        /// standard input.
        ///
        /// A cookie value is accepted too. But anybody who has it is signed in, and other users of the machine can see
        /// command lines.
        #[arg(allow_hyphen_values = true)]
        session: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

fn session_id(text: &str) -> Result<SessionId, &'static str> {
    SessionId::parse(text).ok_or("a session id has 22 characters out of A-Z, a-z, 0-9, - and _")
}

/// A living session, for scripts, as `GET /auth/sessions` shows it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    session_id: SessionId,
    created_at: String,
    last_seen_at: String,
    idle_expires_at: String,
    expires_at: String,
    created_by: &'a str,
    ip: &'a str,
    user_agent: &'a str,
}

impl<'a> Entry<'a> {
    fn of(entry: &'a SessionEntry) -> Self {
        Self {
            session_id: entry.session_id,
            created_at: entry.created_at.to_string(),
            last_seen_at: entry.last_seen_at.to_string(),
            idle_expires_at: entry.idle_expires_at.to_string(),
            expires_at: entry.expires_at.to_string(),
            created_by: &entry.created_by,
            ip: &entry.ip,
            user_agent: &entry.user_agent,
        }
    }
}

pub(super) async fn run(admin: &Admin, command: Command) -> Result<ExitCode, AdminError> {
    match command {
        Command::List { user, output } => list(admin, &user, output.json).await,
        Command::Revoke { session_id: Some(session_id), output, .. } => {
            let user_id = admin.revoke(session_id).await?;
            let result = serde_json::json!({ "session_id": session_id, "user_id": user_id, "sessions_ended": 1 });
            Ok(answer(output.json, &result, || format!("session {session_id} of user {user_id}: ended")))
        }
        Command::Revoke { user, output, .. } => {
            let user = admin.user(&user.expect("one of the two is required")).await?;
            let ended = admin.revoke_all(user.id).await?;
            let result = serde_json::json!({ "user_id": user.id, "sessions_ended": ended });
            Ok(answer(output.json, &result, || format!("{} of {} ended", count(ended), printable(&user.username))))
        }
        Command::Inspect { session, output } => inspect(admin, session, output.json).await,
    }
}

fn count(sessions: u32) -> String {
    if sessions == 1 { "1 session".to_owned() } else { format!("{sessions} sessions") }
}

async fn list(admin: &Admin, user: &str, json: bool) -> Result<ExitCode, AdminError> {
    #[derive(Serialize)]
    struct Sessions<'a> {
        user_id: Uuid,
        sessions: Vec<Entry<'a>>,
    }

    let user = admin.user(user).await?;
    let entries = admin.list_sessions(user.id).await?;
    let found = Sessions { user_id: user.id, sessions: entries.iter().map(Entry::of).collect() };
    Ok(answer(json, &found, || {
        let header = ["SESSION", "CREATED", "LAST SEEN", "EXPIRES", "BY", "ADDRESS", "USER AGENT"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(found.sessions.iter().map(|session| {
            let Entry { created_at, last_seen_at, expires_at, created_by, ip, user_agent, .. } = session;
            let cells = [created_at, last_seen_at.as_str(), expires_at, created_by, ip, user_agent];
            std::iter::once(session.session_id.to_string()).chain(cells.map(printable)).collect()
        }));
        table(&rows)
    }))
}

async fn inspect(admin: &Admin, session: Option<String>, json: bool) -> Result<ExitCode, AdminError> {
    let is_argument = session.as_ref().is_some_and(|text| text != "-");
    let given = match session.filter(|_| is_argument) {
        Some(text) => SecretString::from(text),
        None => match prompt::secret("cookie value or session id") {
            Ok(text) => text,
            Err(why) => return Ok(fail(why, USAGE)),
        },
    };
    // Also accepts `session=VALUE; …`, as copied from a browser or a header.
    let text = given.expose_secret().trim();
    let text = text.split_once("session=").map_or(text, |(_, value)| value.split(';').next().unwrap_or_default());
    let inspection = match SessionId::parse(text) {
        Some(session_id) => Some(admin.inspect(session_id).await?),
        None => admin.inspect_cookie(&text.into()).await?,
    };
    let Some(inspection) = inspection else {
        let why = format!("neither a session id (22 characters) nor a cookie value ({TEXT_LENGTH} characters)");
        return Ok(fail(why, USAGE));
    };
    if is_argument && inspection.cookie.is_some() {
        eprintln!(
            "note: this cookie value is now in the shell's history, and others could see it in the list of processes; \
             next time, give it on standard input"
        );
    }
    let code = if inspection.refusal().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let view = View::of(&inspection);
    answer(json, &view, || view.text());
    Ok(code)
}

/// What `inspect` found, for scripts.
#[derive(Debug, Serialize)]
struct View<'a> {
    session_id: SessionId,
    /// Whether a server would accept the session now.
    accepted: bool,
    refused_because: Option<&'static str>,
    /// Whose session it is; from the cookie if the session is gone.
    user_id: Option<Uuid>,
    username: Option<&'a str>,
    email: Option<&'a str>,
    /// `null` without a cookie.
    cookie: Option<Cookie>,
    /// `null` if there is no living one.
    session: Option<Entry<'a>>,
    /// Seconds until it ends if it isn't used.
    ttl_seconds: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Cookie {
    signature_valid: bool,
    /// Counted from 1 in the order of `SESSION_SECRET`.
    key: Option<usize>,
    keys: usize,
    /// The absolute limit.
    expires_at: Option<String>,
    expired: bool,
}

impl<'a> View<'a> {
    fn of(inspection: &'a Inspection) -> Self {
        let session = inspection.session.as_ref();
        let cookie = inspection.cookie.as_ref().map(|cookie| Cookie {
            signature_valid: cookie.key.is_some(),
            key: cookie.key.map(|key| key + 1),
            keys: inspection.keys,
            expires_at: jiff::Timestamp::from_millisecond(cookie.claims.expires_at_ms)
                .ok()
                .map(|time| time.to_string()),
            expired: cookie.claims.expires_at_ms <= inspection.now.as_millisecond(),
        });
        Self {
            session_id: inspection.session_id,
            accepted: inspection.refusal().is_none(),
            refused_because: inspection.refusal().map(explain::refusal),
            user_id: inspection.user_id,
            username: session.map(|(session, _)| session.username.as_str()),
            email: session.map(|(session, _)| session.email.as_str()),
            cookie,
            session: session.map(|(_, entry)| Entry::of(entry)),
            ttl_seconds: session.map(|(_, entry)| entry.idle_expires_at.as_second() - inspection.now.as_second()),
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![("session", self.session_id.to_string())];
        rows.push(("accepted", self.refused_because.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"))));
        if let Some(cookie) = &self.cookie {
            let Cookie { key, keys, expires_at, expired, .. } = cookie;
            rows.push((
                "signature",
                match key {
                    Some(key) => format!("good, key {key} of {keys}"),
                    None => format!("bad: none of {keys} keys; what the cookie says may be forged"),
                },
            ));
            let expires_at = expires_at.as_deref().unwrap_or("never");
            rows.push(("absolute limit", format!("{expires_at}{}", if *expired { ", passed" } else { "" })));
        }
        if let Some(user_id) = self.user_id {
            let name = self.username.zip(self.email).map(|(name, email)| format!("{name} <{email}> "));
            rows.push(("user", format!("{}{user_id}", name.unwrap_or_default())));
        }
        if let Some(session) = &self.session {
            rows.push(("made", format!("{} by {} for {}", session.created_at, session.created_by, session.ip)));
            rows.push(("user agent", session.user_agent.to_owned()));
            rows.push(("last seen", session.last_seen_at.clone()));
            let ttl = self.ttl_seconds.unwrap_or_default();
            rows.push(("idle limit", format!("{}, in {ttl} s", session.idle_expires_at)));
            rows.push(("ends at the latest", session.expires_at.clone()));
        }
        table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), printable(&value)]).collect::<Vec<_>>())
    }
}
