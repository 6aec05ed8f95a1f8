//! A record of what clients saw and when, and a checker that looks for violations in it.
use std::collections::BTreeMap;
use std::time::Duration;

/// A session's number in the history. Users have numbers too, and each user's passwords, from 0 in the order of first
/// use.
pub(super) type SessionNumber = usize;
pub(super) type UserNumber = usize;
pub(super) type Generation = usize;

/// What a client saw, with the times before its request was sent and after the answer was read.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) what: What,
}

/// What a request shows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The session's own cookie, as the API and the pages take it.
    Main,
    /// The cookie of an application's host, as a proxy shows it to be verified.
    HostBound,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// A login or password change answered with this session.
    Opened { session: SessionNumber, user: UserNumber, password: Generation },
    /// A request with a token of this session was accepted or refused. All its tokens live and die together.
    Checked { session: SessionNumber, by: Token, valid: bool },
    /// This session should end. If that wasn't acknowledged, it may or may not have happened.
    Ended { session: SessionNumber, acknowledged: bool },
    /// Every session of the user except this one should end.
    EndedAll { user: UserNumber, except: Option<SessionNumber>, acknowledged: bool },
    /// The password should become this one, and every session with an older one should end.
    PasswordChanged { user: UserNumber, to: Generation, acknowledged: bool },
    /// Every session of the user should end, and nobody should sign in until the user is enabled.
    Disabled { user: UserNumber, acknowledged: bool },
    /// The user may sign in again. Only what was acknowledged is recorded, with the start of the first attempt.
    Enabled { user: UserNumber },
    /// Any other request without an answer.
    Unknown,
}

/// How long after the loss of its connection a request may still take effect, because a killed replica had already sent
/// commands to Redis.
pub(super) const LINGERS: Duration = Duration::from_secs(2);

/// Something that must not happen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Accepted by a request that began after the end was acknowledged.
    Resurrected(SessionNumber, Token),
    /// Accepted by a request that began after another one was refused, although no end was acknowledged.
    Flickered(SessionNumber, Token),
    /// Signed in with a password after its change was acknowledged.
    OldPassword(SessionNumber),
    /// Signed in after the user was disabled, and before anybody began to enable it.
    WhileDisabled(SessionNumber),
    /// Refused although nobody had begun to end it.
    Lost(SessionNumber, Token),
}

/// Looks for violations. A request takes effect at some time between its start and its end. One without an answer takes
/// effect at any time after its start, or never. Only what is a violation for every such time is reported.
pub(super) fn violations(history: &[Event]) -> Vec<Violation> {
    struct Session {
        user: UserNumber,
        password: Generation,
        opening: (Duration, Duration),
        /// From then on it has certainly ended, because that was acknowledged.
        revoked_from: Duration,
        /// From then on it has certainly ended, because a request was refused.
        refused_from: Duration,
        /// Before then it has certainly not ended.
        in_danger_from: Duration,
    }
    let mut sessions = BTreeMap::new();
    for event in history {
        if let What::Opened { session, user, password } = event.what {
            let opening = (event.start, event.end);
            let never = Duration::MAX;
            let alive =
                Session { user, password, opening, revoked_from: never, refused_from: never, in_danger_from: never };
            assert!(sessions.insert(session, alive).is_none(), "two sessions are number {session}");
        }
    }
    let mut found = Vec::new();
    for Event { start, end, what } in history {
        if let What::Checked { session, valid: false, .. } = what {
            // A refusal doesn't end the session, but shows that something has ended it.
            let session = sessions.get_mut(session).expect("a session that was opened");
            session.refused_from = session.refused_from.min(*end);
        }
        let (What::Ended { acknowledged, .. }
        | What::EndedAll { acknowledged, .. }
        | What::PasswordChanged { acknowledged, .. }
        | What::Disabled { acknowledged, .. }) = *what
        else {
            continue;
        };
        // The next time that somebody began to enable the user.
        let enabled = |user| {
            let begun = history.iter().filter(|event| matches!(event.what, What::Enabled { user: of } if of == user));
            begun.map(|event| event.start).filter(|begun| begun >= end).min().unwrap_or(Duration::MAX)
        };
        let over = if acknowledged { *end } else { *end + LINGERS };
        for (number, session) in &mut sessions {
            // Whether this may have ended the session, and whether it must have if it was acknowledged.
            let (may, must) = match *what {
                What::Ended { session: ended, .. } => (ended == *number, true),
                What::EndedAll { user, except, .. } => {
                    (user == session.user && except != Some(*number), session.opening.1 < *start)
                }
                What::PasswordChanged { user, to, .. } => {
                    let is_older = session.password < to;
                    // A change that failed may also have ended newer sessions.
                    (user == session.user && (is_older || !acknowledged), is_older)
                }
                // Even a login that was under way.
                What::Disabled { user, .. } => (user == session.user, session.opening.1 < enabled(user)),
                What::Opened { .. } | What::Checked { .. } | What::Enabled { .. } | What::Unknown => {
                    unreachable!("went on to the next")
                }
            };
            if may && session.opening.0 < over {
                session.in_danger_from = session.in_danger_from.min(*start);
            }
            if may && must && acknowledged {
                session.revoked_from = session.revoked_from.min(*end);
                if matches!(what, What::PasswordChanged { .. }) && session.opening.0 > *end {
                    found.push(Violation::OldPassword(*number));
                }
            }
            if let What::Disabled { user, acknowledged: true } = *what
                && user == session.user
                && session.opening.0 > *end
                && session.opening.1 < enabled(user)
            {
                found.push(Violation::WhileDisabled(*number));
            }
        }
    }
    for event in history {
        let What::Checked { session: number, by, valid } = event.what else { continue };
        let session = &sessions[&number];
        if valid && event.start > session.revoked_from {
            found.push(Violation::Resurrected(number, by));
        } else if valid && event.start > session.refused_from {
            found.push(Violation::Flickered(number, by));
        }
        if !valid && event.end < session.in_danger_from {
            found.push(Violation::Lost(number, by));
        }
    }
    found
}

/// What happened to the session of a violation and to its user, in the order of beginning.
pub(super) fn story(history: &[Event], violation: &Violation) -> String {
    let (Violation::Resurrected(number, _)
    | Violation::Flickered(number, _)
    | Violation::OldPassword(number)
    | Violation::WhileDisabled(number)
    | Violation::Lost(number, _)) = *violation;
    let opened = |event: &&Event| matches!(event.what, What::Opened { session, .. } if session == number);
    let Some(Event { what: What::Opened { user: of, .. }, .. }) = history.iter().find(opened) else {
        return "it was never opened".to_owned();
    };
    let concerns = |event: &&Event| match event.what {
        What::Opened { user, .. }
        | What::EndedAll { user, .. }
        | What::PasswordChanged { user, .. }
        | What::Disabled { user, .. }
        | What::Enabled { user } => user == *of,
        What::Checked { session, .. } | What::Ended { session, .. } => session == number,
        What::Unknown => false,
    };
    let mut events: Vec<_> = history.iter().filter(concerns).collect();
    events.sort_by_key(|event| event.start);
    let line = |event: &Event| format!("{:?} to {:?}: {:?}", event.start, event.end, event.what);
    events.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn figures(history: &[Event]) -> String {
    let (mut ended, mut all, mut changes, mut disabled, mut unanswered) = (0, 0, 0, 0, 0);
    let (mut checks, mut refused) = ([0; 2], [0; 2]);
    for event in history {
        match event.what {
            What::Opened { .. } | What::Enabled { .. } => {}
            What::Checked { by, valid, .. } => {
                let by = usize::from(by == Token::HostBound);
                checks[by] += 1;
                refused[by] += u32::from(!valid);
            }
            What::Ended { acknowledged: true, .. } => ended += 1,
            What::EndedAll { acknowledged: true, .. } => all += 1,
            What::PasswordChanged { acknowledged: true, .. } => changes += 1,
            What::Disabled { acknowledged: true, .. } => disabled += 1,
            What::Ended { .. }
            | What::EndedAll { .. }
            | What::PasswordChanged { .. }
            | What::Disabled { .. }
            | What::Unknown => unanswered += 1,
        }
    }
    format!(
        "{} operations ({} checks, {} of them refused, and {} of host-bound tokens, {} of them refused, {ended} sessions ended \
         one by one, {all} times all of a user's, {changes} password changes, {disabled} times a user disabled, {unanswered} \
         unanswered or failed)",
        history.len(),
        checks[0],
        refused[0],
        checks[1],
        refused[1],
    )
}

mod checker {
    use super::*;

    /// Judges a history: session 0 of user 0 with password 0 is created from 0 to 10 ms, then these events.
    fn judged(events: &[(u64, u64, What)]) -> Vec<Violation> {
        let opened = (0, 10, What::Opened { session: 0, user: 0, password: 0 });
        let event =
            |&(start, end, what)| Event { start: Duration::from_millis(start), end: Duration::from_millis(end), what };
        violations(&std::iter::once(&opened).chain(events).map(event).collect::<Vec<_>>())
    }

    fn checked(valid: bool) -> What {
        What::Checked { session: 0, by: Token::Main, valid }
    }

    fn verified(valid: bool) -> What {
        What::Checked { session: 0, by: Token::HostBound, valid }
    }

    #[test]
    fn finds_a_session_that_came_back() {
        let logout = |acknowledged| What::Ended { session: 0, acknowledged };
        let back = [Violation::Resurrected(0, Token::Main)];
        assert_eq!(judged(&[(20, 30, logout(true)), (31, 40, checked(true))]), back);
        assert_eq!(judged(&[(20, 30, logout(true)), (25, 40, checked(true))]), [], "under way at the same time");
        assert_eq!(judged(&[(20, 30, logout(false)), (31, 40, checked(true))]), [], "the logout never arrived");
        assert_eq!(
            judged(&[(20, 30, logout(false)), (31, 40, checked(false)), (41, 50, checked(true))]),
            [Violation::Flickered(0, Token::Main)]
        );
        // The order in which events were recorded doesn't matter.
        assert_eq!(judged(&[(31, 40, checked(true)), (20, 30, logout(true))]), back);
    }

    #[test]
    fn finds_a_session_that_was_not_revoked_with_the_others() {
        let all = |user, except| What::EndedAll { user, except, acknowledged: true };
        let back = [Violation::Resurrected(0, Token::Main)];
        assert_eq!(judged(&[(20, 30, all(0, None)), (31, 40, checked(true))]), back);
        assert_eq!(judged(&[(20, 30, all(0, Some(1))), (31, 40, checked(true))]), back);
        assert_eq!(judged(&[(20, 30, all(0, Some(0))), (31, 40, checked(true))]), [], "this one was kept");
        assert_eq!(judged(&[(20, 30, all(1, None)), (31, 40, checked(true))]), [], "another user's");
        assert_eq!(judged(&[(5, 30, all(0, None)), (31, 40, checked(true))]), [], "opened at the same time");
    }

    #[test]
    fn finds_a_session_that_outlived_its_password() {
        let change = |to, acknowledged| What::PasswordChanged { user: 0, to, acknowledged };
        let back = [Violation::Resurrected(0, Token::Main)];
        assert_eq!(judged(&[(20, 30, change(1, true)), (31, 40, checked(true))]), back);
        // Even a session that was created at the same time ends, because it had the old password.
        assert_eq!(judged(&[(5, 15, change(1, true)), (16, 40, checked(true))]), back);
        assert_eq!(judged(&[(20, 30, change(1, false)), (31, 40, checked(true))]), [], "it failed");
        assert_eq!(judged(&[(5, 15, change(0, true)), (16, 40, checked(true))]), [], "it's the new password's session");
    }

    #[test]
    fn finds_a_login_with_an_old_password() {
        let change = What::PasswordChanged { user: 0, to: 1, acknowledged: true };
        let login = What::Opened { session: 1, user: 0, password: 0 };
        assert_eq!(judged(&[(20, 30, change), (31, 40, login)]), [Violation::OldPassword(1)]);
        assert_eq!(judged(&[(20, 30, change), (29, 40, login)]), [], "under way at the same time");
        let login = What::Opened { session: 1, user: 0, password: 1 };
        assert_eq!(judged(&[(20, 30, change), (31, 40, login)]), []);
    }

    #[test]
    fn finds_a_session_that_got_lost() {
        let lost = [Violation::Lost(0, Token::Main)];
        assert_eq!(judged(&[(20, 30, checked(false))]), lost);
        assert_eq!(judged(&[(20, 30, checked(false)), (31, 40, What::Ended { session: 0, acknowledged: true })]), lost);
        for acknowledged in [true, false] {
            for end in [
                What::Ended { session: 0, acknowledged },
                What::EndedAll { user: 0, except: None, acknowledged },
                What::PasswordChanged { user: 0, to: 1, acknowledged },
            ] {
                assert_eq!(judged(&[(15, 40, end), (20, 30, checked(false))]), [], "{end:?} was under way");
            }
        }
        let later = What::Opened { session: 1, user: 0, password: 0 };
        let refused = (70, 80, What::Checked { session: 1, by: Token::Main, valid: false });
        let all = |acknowledged| What::EndedAll { user: 0, except: None, acknowledged };
        assert_eq!(
            judged(&[(20, 30, all(true)), (50, 60, later), refused]),
            [Violation::Lost(1, Token::Main)],
            "it came later"
        );
        assert_eq!(judged(&[(20, 30, all(false)), (50, 60, later), refused]), [], "it may have come later");
        let kept = What::EndedAll { user: 0, except: Some(0), acknowledged: true };
        assert_eq!(judged(&[(15, 19, kept), (20, 30, checked(false))]), lost);
        assert_eq!(judged(&[(15, 19, What::Unknown), (20, 30, checked(true))]), []);
    }

    #[test]
    fn finds_a_host_bound_token_that_outlived_its_session() {
        for end in [
            What::Ended { session: 0, acknowledged: true },
            What::EndedAll { user: 0, except: None, acknowledged: true },
            What::EndedAll { user: 0, except: Some(1), acknowledged: true },
            What::PasswordChanged { user: 0, to: 1, acknowledged: true },
            What::Disabled { user: 0, acknowledged: true },
        ] {
            let back = [Violation::Resurrected(0, Token::HostBound)];
            assert_eq!(judged(&[(20, 30, end), (31, 40, verified(true))]), back, "{end:?}");
            assert_eq!(judged(&[(20, 30, end), (25, 40, verified(true))]), [], "{end:?} at the same time");
            // As if a proxy or a replica had kept the answer, while the session's own cookie is refused.
            let kept = [(11, 15, verified(true)), (20, 30, end), (31, 40, checked(false)), (41, 50, verified(true))];
            assert_eq!(judged(&kept), back, "{end:?}");
        }
        // No end was acknowledged, but one token was refused already.
        let logout = What::Ended { session: 0, acknowledged: false };
        for (first, then, by) in
            [(checked(false), verified(true), Token::HostBound), (verified(false), checked(true), Token::Main)]
        {
            let flickered = [Violation::Flickered(0, by)];
            assert_eq!(judged(&[(20, 30, logout), (31, 40, first), (41, 50, then)]), flickered);
        }
        // Its session is alive.
        assert_eq!(
            judged(&[(20, 30, checked(true)), (31, 40, verified(false))]),
            [Violation::Lost(0, Token::HostBound)]
        );
    }

    #[test]
    fn finds_a_session_that_outlived_its_users_disabling() {
        let disabled = |acknowledged| What::Disabled { user: 0, acknowledged };
        let enabled = What::Enabled { user: 0 };
        let back = [Violation::Resurrected(0, Token::Main)];
        assert_eq!(judged(&[(20, 30, disabled(true)), (31, 40, checked(true))]), back);
        assert_eq!(judged(&[(20, 30, disabled(true)), (40, 50, enabled), (60, 70, checked(true))]), back, "for ever");
        assert_eq!(judged(&[(20, 30, disabled(false)), (31, 40, checked(true))]), [], "it failed");
        assert_eq!(
            judged(&[(20, 30, disabled(false)), (31, 40, checked(false))]),
            [],
            "it may have ended all the same"
        );
        let login = What::Opened { session: 1, user: 0, password: 0 };
        let within = [Violation::WhileDisabled(1)];
        assert_eq!(judged(&[(20, 30, disabled(true)), (31, 40, login)]), within);
        assert_eq!(judged(&[(20, 30, disabled(true)), (31, 40, login), (50, 60, enabled)]), within);
        assert_eq!(judged(&[(11, 12, enabled), (20, 30, disabled(true)), (31, 40, login)]), within, "enabled before");
        assert_eq!(judged(&[(20, 30, disabled(true)), (35, 60, enabled), (31, 40, login)]), [], "at the same time");
        let late = What::Checked { session: 1, by: Token::Main, valid: true };
        let during = |enabled_from| {
            judged(&[(20, 30, disabled(true)), (29, 40, login), (enabled_from, 60, enabled), (61, 70, late)])
        };
        assert_eq!(during(50), [Violation::Resurrected(1, Token::Main)], "under way when the user was disabled");
        assert_eq!(during(35), [], "and still when the user was enabled");
        let others = What::Opened { session: 1, user: 1, password: 0 };
        assert_eq!(judged(&[(20, 30, disabled(true)), (31, 40, others)]), []);
    }
}
