//! What every session store must do, run against each of them.
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::id::tag_text;
use super::place::{bucket, tag};
use super::redis::session_key;
use super::{Created, Limits, MemorySessions, NewSession, RedisSessions, SessionId, SessionKey, SessionStore};
use crate::clock::Clock;
use crate::config::RedisConfig;
use crate::config::SessionFormat::{self, Classic, Compact};
use crate::store::RedisHandle;
use crate::store::redis::{Operation, operation};
use crate::store::sessions::{NewCode, Taken};
use crate::store::users::groups::Groups;

/// Long enough that a test on a busy machine does its steps well within a third of it.
const IDLE: Duration = Duration::from_secs(3);
const LIMITS: Limits = Limits { idle: IDLE, max_age: Duration::from_mins(1), per_user: 3 };
const DONE: Created = Created::Done { evicted: 0, replaced: false };

#[path = "../../../tests/it/fleet/ports.rs"]
#[expect(dead_code, unreachable_pub, reason = "the integration tests use the rest")]
mod ports;
#[path = "../../../tests/it/fleet/redis_group.rs"]
#[expect(dead_code, unreachable_pub, reason = "the integration tests use the rest")]
mod redis_group;
#[path = "../../../tests/it/fleet/redis_server.rs"]
#[expect(dead_code, unreachable_pub, reason = "the integration tests use the rest")]
mod redis_server;

use self::redis_group::{Access, Group};

/// Servers that all tests of one kind share. They are stopped after the last test.
type Shared = tokio::sync::Mutex<Weak<Group>>;

static SENTINEL: Shared = Shared::const_new(Weak::new());
static CLUSTER: Shared = Shared::const_new(Weak::new());
static SINGLE: Shared = Shared::const_new(Weak::new());

async fn shared(kept: &Shared, start: impl Future<Output = Group>) -> Arc<Group> {
    let mut kept = kept.lock().await;
    if let Some(group) = kept.upgrade() {
        return group;
    }
    let group = Arc::new(start.await);
    *kept = Arc::downgrade(&group);
    group
}

/// A store, and its clock.
struct Subject {
    store: Arc<SessionStore>,
    clock: Clock,
    redis: Option<Arc<Group>>,
    format: SessionFormat,
}

impl Subject {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        match self.redis {
            Some(_) => tokio::time::sleep(time).await,
            None => self.clock.advance(time),
        }
    }

    /// The key of a user's session, named by a character.
    fn key(&self, user_id: Uuid, id: char) -> SessionKey {
        let mut text = id.to_string().repeat(22);
        if self.format == Compact {
            text.replace_range(..3, std::str::from_utf8(&tag_text(user_id)).expect("base64url"));
        }
        SessionKey { user_id, session_id: SessionId::parse(&text).expect("22 characters"), format: self.format }
    }

    fn session(&self, user_id: Uuid, id: char) -> NewSession {
        let created_at = match self.format {
            Classic => self.now(),
            Compact => Timestamp::from_second(self.now().as_second()).expect("a time"),
        };
        NewSession {
            key: self.key(user_id, id),
            username: "ada".to_owned(),
            email: "ada@example.org".to_owned(),
            created_at,
            expires_at: created_at + LIMITS.max_age,
            created_by: "replica-1".to_owned(),
            ip: "203.0.113.7".to_owned(),
            user_agent: "curl/8".to_owned(),
            groups: Groups::default(),
            epoch: 1,
            replaces: None,
        }
    }

    async fn is_alive(&self, key: SessionKey) -> bool {
        self.store.check(key, IDLE).await.expect("the store answers").is_some()
    }

    async fn create(&self, session: &NewSession) -> Created {
        self.store.create(session).await.expect("the store answers")
    }
}

fn memory() -> Subject {
    let clock = Clock::fixed(Timestamp::from_second(1_800_000_000).expect("a time"));
    let store = Arc::new(SessionStore::Memory(MemorySessions::new(clock.clone(), LIMITS)));
    Subject { store, clock, redis: None, format: Classic }
}

fn on(group: Arc<Group>, format: SessionFormat) -> Subject {
    at(group, format, Clock::system())
}

fn at(group: Arc<Group>, format: SessionFormat, clock: Clock) -> Subject {
    let config = RedisConfig::of(&group.url(), []);
    let handle = Arc::new(RedisHandle::new(&config).expect("an address").expect("REDIS_URL"));
    let store = Arc::new(SessionStore::Redis(RedisSessions::new(handle, clock.clone(), LIMITS)));
    Subject { store, clock, redis: Some(group), format }
}

async fn single() -> Arc<Group> {
    shared(&SINGLE, Group::single(Access::default())).await
}

async fn sentinel() -> Arc<Group> {
    shared(&SENTINEL, Group::sentinel(Access::default())).await
}

async fn cluster() -> Arc<Group> {
    shared(&CLUSTER, Group::cluster(Access::default())).await
}

/// Makes a test for each store from each of these functions.
macro_rules! every_store {
    ($($name:ident)*) => {
        mod with_memory {
            $(#[tokio::test] async fn $name() { super::$name(super::memory()).await; })*
        }
        every_store! { with_redis: single, Classic; $($name)* }
        every_store! { with_sentinel: sentinel, Classic; $($name)* }
        every_store! { with_cluster: cluster, Classic; $($name)* }
        every_store! { with_redis_compact: single, Compact; $($name)* }
        every_store! { with_sentinel_compact: sentinel, Compact; $($name)* }
        every_store! { with_cluster_compact: cluster, Compact; $($name)* }
    };
    ($mode:ident: $group:ident, $format:ident; $($name:ident)*) => {
        mod $mode {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::on(super::$group().await, super::$format)).await; })*
        }
    };
}

every_store! {
    a_session_carries_its_groups
    a_code_is_taken_once_for_its_host_and_start
    a_code_dies_with_its_session_and_after_30_seconds
    a_session_is_found_until_it_ends
    an_idle_session_ends
    a_check_renews
    a_check_never_brings_a_session_back
    a_new_session_replaces
    the_oldest_goes_when_there_are_too_many
    idle_sessions_do_not_count
    all_of_a_user_s_sessions_end
    a_fence_stops_what_was_verified_before_it
    a_fence_never_goes_down
    a_fence_that_stands_ends_nothing_younger
    a_session_s_name_leads_to_its_user
}

async fn a_session_is_found_until_it_ends(subject: Subject) {
    let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
    let session = subject.session(ada, 'a');
    assert!(!subject.is_alive(session.key).await);
    assert_eq!(subject.create(&session).await, DONE);
    let found = subject.store.check(session.key, IDLE).await.expect("the store answers").expect("alive");
    assert_eq!((found.username.as_str(), found.email.as_str()), ("ada", "ada@example.org"));
    assert_eq!((found.created_at, found.created_by.as_str()), (session.created_at, "replica-1"));
    assert!(!subject.is_alive(subject.key(eve, 'a')).await, "another user's key");
    assert!(!subject.store.end(subject.key(eve, 'a')).await.expect("the store answers"));
    assert!(subject.store.end(session.key).await.expect("the store answers"), "it was alive");
    assert!(!subject.store.end(session.key).await.expect("the store answers"), "it no longer is");
    assert!(!subject.is_alive(session.key).await);
}

async fn a_session_s_name_leads_to_its_user(subject: Subject) {
    let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
    // Names that no other test uses, because tests share servers.
    for session in [subject.session(ada, 'k'), subject.session(eve, 'l')] {
        subject.create(&session).await;
    }
    let owner = async |key: SessionKey| subject.store.owner(key.session_id).await.expect("the store answers");
    for key in [subject.key(ada, 'k'), subject.key(eve, 'l')] {
        let found = owner(key).await.expect("alive");
        assert_eq!((found.user_id, found.session_id), (key.user_id, key.session_id));
        assert!(subject.redis.is_none() || found == key, "{found:?}");
    }
    assert_eq!(owner(subject.key(ada, 'm')).await, None);
    let inspect = async |key| subject.store.inspect(key).await.expect("the store answers");
    let (session, entry) = inspect(subject.key(ada, 'k')).await.expect("alive");
    assert_eq!((session.username.as_str(), entry.session_id), ("ada", subject.key(ada, 'k').session_id));
    assert!(inspect(subject.key(eve, 'k')).await.is_none(), "another user's key");
    subject.pass(IDLE + Duration::from_millis(1)).await;
    assert!(inspect(subject.key(ada, 'k')).await.is_none(), "looking at it did not renew it");
    assert_eq!(owner(subject.key(ada, 'k')).await, None);
}

async fn an_idle_session_ends(subject: Subject) {
    let session = subject.session(Uuid::now_v7(), 'a');
    subject.create(&session).await;
    subject.pass(IDLE + Duration::from_millis(50)).await;
    assert!(!subject.is_alive(session.key).await);
    assert!(!subject.store.end(session.key).await.expect("the store answers"), "an ended session can't be ended");
}

async fn a_check_renews(subject: Subject) {
    let session = subject.session(Uuid::now_v7(), 'a');
    subject.create(&session).await;
    for _ in 0..4 {
        subject.pass(IDLE / 2).await;
        assert!(subject.is_alive(session.key).await);
    }
    // The caller shortens the renewal if the absolute limit comes first.
    let left = Duration::from_millis(50);
    assert!(subject.store.check(session.key, left).await.expect("the store answers").is_some());
    subject.pass(left * 2).await;
    assert!(!subject.is_alive(session.key).await);
}

/// Other servers re-create a deleted session if a request that began before the deletion writes its renewal afterwards.
async fn a_check_never_brings_a_session_back(subject: Subject) {
    for _ in 0..20 {
        let session = subject.session(Uuid::now_v7(), 'a');
        subject.create(&session).await;
        let checks: Vec<_> = (0..16)
            .map(|_| {
                let (store, key) = (Arc::clone(&subject.store), session.key);
                tokio::spawn(async move {
                    for _ in 0..20 {
                        store.check(key, IDLE).await.expect("the store answers");
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(subject.store.end(session.key).await.expect("the store answers"));
        assert!(!subject.is_alive(session.key).await);
        for check in checks {
            check.await.expect("no panic");
        }
        assert!(!subject.is_alive(session.key).await);
    }
}

async fn a_new_session_replaces(subject: Subject) {
    let ada = Uuid::now_v7();
    let old = subject.session(ada, 'a');
    subject.create(&old).await;
    let new = NewSession { replaces: Some(old.key.session_id), ..subject.session(ada, 'b') };
    assert_eq!(subject.create(&new).await, Created::Done { evicted: 0, replaced: true });
    assert!(!subject.is_alive(old.key).await);
    assert!(subject.is_alive(new.key).await);
    let next = NewSession { replaces: Some(old.key.session_id), ..subject.session(ada, 'c') };
    assert_eq!(subject.create(&next).await, DONE, "nothing was there to be replaced");
}

async fn the_oldest_goes_when_there_are_too_many(subject: Subject) {
    let ada = Uuid::now_v7();
    for id in ['z', 'y', 'x'] {
        assert_eq!(subject.create(&subject.session(ada, id)).await, DONE);
        subject.pass(Duration::from_millis(5)).await;
    }
    let fourth = subject.create(&subject.session(ada, 'a')).await;
    assert_eq!(fourth, Created::Done { evicted: 1, replaced: false });
    let alive = [('z', false), ('y', true), ('x', true), ('a', true)];
    for (id, expected) in alive {
        assert_eq!(subject.is_alive(subject.key(ada, id)).await, expected, "{id}");
    }
}

async fn idle_sessions_do_not_count(subject: Subject) {
    let ada = Uuid::now_v7();
    for id in ['a', 'b', 'c'] {
        subject.create(&subject.session(ada, id)).await;
    }
    subject.pass(IDLE * 2 / 3).await;
    assert!(subject.is_alive(subject.key(ada, 'a')).await);
    subject.pass(IDLE * 2 / 3).await;
    for id in ['d', 'e'] {
        assert_eq!(subject.create(&subject.session(ada, id)).await, DONE, "only one of the first three is alive");
    }
    assert!(subject.is_alive(subject.key(ada, 'a')).await);
}

async fn all_of_a_user_s_sessions_end(subject: Subject) {
    let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
    for (user, id) in [(ada, 'a'), (ada, 'b'), (ada, 'c'), (eve, 'a')] {
        subject.create(&subject.session(user, id)).await;
    }
    let keep = Some(subject.key(ada, 'b').session_id);
    assert_eq!(subject.store.end_all(ada, keep).await.expect("the store answers"), 2);
    for (user, id, expected) in [(ada, 'a', false), (ada, 'b', true), (ada, 'c', false), (eve, 'a', true)] {
        assert_eq!(subject.is_alive(subject.key(user, id)).await, expected, "{id}");
    }
    assert_eq!(subject.store.end_all(ada, None).await.expect("the store answers"), 1);
    assert_eq!(subject.store.end_all(ada, None).await.expect("the store answers"), 0);
}

async fn a_fence_stops_what_was_verified_before_it(subject: Subject) {
    let ada = Uuid::now_v7();
    subject.create(&subject.session(ada, 'a')).await;
    assert_eq!(subject.store.fence_off(ada, 2).await.expect("the store answers"), 1);
    assert_eq!(subject.create(&subject.session(ada, 'b')).await, Created::Overtaken { fence: 2 });
    assert!(!subject.is_alive(subject.key(ada, 'b')).await);
    assert_eq!(subject.create(&NewSession { epoch: 2, ..subject.session(ada, 'c') }).await, DONE);
}

async fn a_fence_never_goes_down(subject: Subject) {
    let ada = Uuid::now_v7();
    for epoch in [5, 3] {
        subject.store.fence_off(ada, epoch).await.expect("the store answers");
    }
    let late = NewSession { epoch: 4, ..subject.session(ada, 'a') };
    assert_eq!(subject.create(&late).await, Created::Overtaken { fence: 5 });
}

/// Of two changes of one password at once, the later one must not end the session that the earlier one created.
async fn a_fence_that_stands_ends_nothing_younger(subject: Subject) {
    let ada = Uuid::now_v7();
    subject.create(&subject.session(ada, 'a')).await;
    assert_eq!(subject.store.fence_off(ada, 2).await.expect("the store answers"), 1);
    assert!(!subject.is_alive(subject.key(ada, 'a')).await);
    assert_eq!(subject.create(&subject.session(ada, 'b')).await, Created::Overtaken { fence: 2 });
    let younger = NewSession { epoch: 2, ..subject.session(ada, 'c') };
    assert_eq!(subject.create(&younger).await, DONE);
    assert_eq!(subject.store.fence_off(ada, 2).await.expect("the store answers"), 0);
    assert_eq!(subject.store.fence_off(ada, 1).await.expect("the store answers"), 0);
    assert!(subject.is_alive(younger.key).await);
    assert_eq!(subject.store.fence_off(ada, 3).await.expect("the store answers"), 1);
    assert!(!subject.is_alive(younger.key).await);
    assert_eq!(subject.create(&younger).await, Created::Overtaken { fence: 3 });
}

async fn a_session_carries_its_groups(subject: Subject) {
    let ada = Uuid::now_v7();
    let groups = Groups::parse("admins,staff");
    subject.create(&NewSession { groups: groups.clone(), ..subject.session(ada, 'a') }).await;
    subject.create(&subject.session(ada, 'b')).await;
    let checked =
        async |id| subject.store.check(subject.key(ada, id), IDLE).await.expect("the store answers").expect("alive");
    assert_eq!(checked('a').await.groups, groups);
    assert!(checked('b').await.groups.is_empty());
    let (session, _) = subject.store.inspect(subject.key(ada, 'a')).await.expect("the store answers").expect("alive");
    assert_eq!(session.groups, groups);
}

fn code(subject: &Subject, user_id: Uuid, id: char, hash: &str) -> NewCode {
    NewCode {
        key: subject.key(user_id, id),
        hash: hash.to_owned(),
        expires_at_ms: 1_800_000_000_000,
        host: "app.example.org".to_owned(),
        start: "start".to_owned(),
        to: "/x?y=%C3%BC".to_owned(),
    }
}

/// A session that is not idle while the test goes on.
async fn opened(subject: &Subject, user_id: Uuid, id: char) {
    let session = subject.session(user_id, id);
    assert_eq!(subject.create(&session).await, DONE);
    subject.store.check(session.key, LIMITS.max_age).await.expect("the store answers").expect("alive");
}

async fn a_code_is_taken_once_for_its_host_and_start(subject: Subject) {
    let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
    opened(&subject, ada, 'a').await;
    let put = async |hash| subject.store.put_code(&code(&subject, ada, 'a', hash)).await.expect("the store answers");
    let take = async |user, hash, host, start| {
        subject.store.take_code(user, hash, host, start).await.expect("the store answers")
    };
    assert!(put("1").await);
    let taken = Taken { key: subject.key(ada, 'a'), expires_at_ms: 1_800_000_000_000, to: "/x?y=%C3%BC".to_owned() };
    assert_eq!(take(ada, "1", "app.example.org", "start").await, Some(taken.clone()));
    assert_eq!(take(ada, "1", "app.example.org", "start").await, None, "used twice");
    // A failed attempt uses up the code too.
    for (hash, host, start) in [("2", "wiki.example.org", "start"), ("3", "app.example.org", "another start")] {
        assert!(put(hash).await);
        assert_eq!(take(ada, hash, host, start).await, None);
        assert_eq!(take(ada, hash, "app.example.org", "start").await, None);
    }
    assert!(put("4").await);
    assert_eq!(take(eve, "4", "app.example.org", "start").await, None, "another user's");
    assert_eq!(take(ada, "none", "app.example.org", "start").await, None);

    // The session remembers the hosts at which it was opened, the latest first.
    let hosts = async || subject.store.list(ada).await.expect("the store answers")[0].hosts.clone();
    assert_eq!(hosts().await, ["app.example.org"]);
    let other = NewCode { host: "wiki.example.org".to_owned(), ..code(&subject, ada, 'a', "5") };
    assert!(subject.store.put_code(&other).await.expect("the store answers"));
    assert!(take(ada, "5", "wiki.example.org", "start").await.is_some());
    assert_eq!(hosts().await, ["wiki.example.org", "app.example.org"]);
    assert!(put("6").await);
    assert_eq!(take(ada, "6", "app.example.org", "start").await, Some(taken));
    assert_eq!(hosts().await, ["app.example.org", "wiki.example.org"]);
}

async fn a_code_dies_with_its_session_and_after_30_seconds(subject: Subject) {
    let ada = Uuid::now_v7();
    let put = async |hash| subject.store.put_code(&code(&subject, ada, 'a', hash)).await.expect("the store answers");
    let take =
        async |hash| subject.store.take_code(ada, hash, "app.example.org", "start").await.expect("the store answers");
    assert!(!put("1").await, "without a session");
    opened(&subject, ada, 'a').await;
    assert!(put("2").await);
    assert!(subject.store.end(subject.key(ada, 'a')).await.expect("the store answers"));
    assert_eq!(take("2").await, None);
    assert!(!subject.is_alive(subject.key(ada, 'a')).await, "taking a code brings no session back");
    // In Redis, tests/it/forward_auth looks at the time to live instead.
    if subject.redis.is_none() {
        opened(&subject, ada, 'a').await;
        assert!(put("3").await);
        subject.pass(Duration::from_secs(31)).await;
        assert!(subject.is_alive(subject.key(ada, 'a')).await);
        assert_eq!(take("3").await, None);
    }
}

/// The same Redis, for two replicas of which each has one of the formats.
fn both(group: &Arc<Group>) -> [Subject; 2] {
    [Classic, Compact].map(|format| on(Arc::clone(group), format))
}

/// Makes a test for one Redis and for a cluster from each of these functions.
macro_rules! both_formats {
    ($($name:ident)*) => {
        mod with_both_formats {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::single().await).await; })*
        }
        mod with_both_formats_in_a_cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::cluster().await).await; })*
        }
    };
}

both_formats! {
    every_session_is_listed_whatever_its_format
    every_session_ends_whatever_its_format
    a_fence_stops_both_formats
    the_oldest_of_both_formats_goes_when_there_are_too_many
    users_with_the_same_tag_are_kept_apart
    an_index_loses_what_has_ended
    an_index_outlives_its_sessions_whatever_the_clocks_say
}

async fn every_session_is_listed_whatever_its_format(group: Arc<Group>) {
    let [classic, compact] = both(&group);
    let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
    classic.create(&classic.session(ada, 'a')).await;
    compact.pass(Duration::from_millis(1001)).await;
    compact.create(&compact.session(ada, 'b')).await;
    compact.create(&compact.session(ada, 'c')).await;
    compact.create(&compact.session(eve, 'd')).await;
    for subject in [&classic, &compact] {
        let listed = subject.store.list(ada).await.expect("the store answers");
        let ids: Vec<_> = listed.iter().map(|entry| entry.session_id).collect();
        let expected = [compact.key(ada, 'c'), compact.key(ada, 'b'), classic.key(ada, 'a')].map(|key| key.session_id);
        assert_eq!(ids, expected, "newest first");
        assert!(subject.is_alive(classic.key(ada, 'a')).await && subject.is_alive(compact.key(ada, 'b')).await);
    }
}

async fn every_session_ends_whatever_its_format(group: Arc<Group>) {
    let [classic, compact] = both(&group);
    for subject in [&classic, &compact] {
        let (ada, eve) = (Uuid::now_v7(), Uuid::now_v7());
        let others = [classic.session(eve, 'e'), compact.session(eve, 'f')];
        let sessions = [classic.session(ada, 'a'), compact.session(ada, 'b'), compact.session(ada, 'c')];
        for session in others.iter().chain(&sessions) {
            assert_eq!(subject.create(session).await, DONE);
        }
        let keep = Some(compact.key(ada, 'b').session_id);
        assert_eq!(subject.store.end_all(ada, keep).await.expect("the store answers"), 2);
        for (session, expected) in sessions.iter().zip([false, true, false]) {
            assert_eq!(subject.is_alive(session.key).await, expected, "{:?}", session.key);
        }
        assert_eq!(subject.store.end_all(ada, None).await.expect("the store answers"), 1);
        assert!(!subject.is_alive(sessions[1].key).await);
        for session in &others {
            assert!(subject.is_alive(session.key).await, "{:?}", session.key);
        }
    }
}

async fn a_fence_stops_both_formats(group: Arc<Group>) {
    let subjects = both(&group);
    for subject in &subjects {
        let ada = Uuid::now_v7();
        assert_eq!(subject.store.fence_off(ada, 2).await.expect("the store answers"), 0);
        for other in &subjects {
            assert_eq!(other.create(&other.session(ada, 'a')).await, Created::Overtaken { fence: 2 });
            assert_eq!(other.create(&NewSession { epoch: 2, ..other.session(ada, 'b') }).await, DONE);
        }
        assert_eq!(subject.store.fence_off(ada, 2).await.expect("the store answers"), 0, "it stands already");
        assert_eq!(subject.store.fence_off(ada, 3).await.expect("the store answers"), 2);
    }
}

async fn the_oldest_of_both_formats_goes_when_there_are_too_many(group: Arc<Group>) {
    let [classic, compact] = both(&group);
    let ada = Uuid::now_v7();
    let created = [(&compact, 'z'), (&classic, 'y'), (&compact, 'x'), (&classic, 'b'), (&compact, 'a')];
    for (n, (subject, id)) in created.into_iter().enumerate() {
        let evicted = u32::from(n >= 3);
        assert_eq!(subject.create(&subject.session(ada, id)).await, Created::Done { evicted, replaced: false }, "{id}");
        // The compact format keeps whole seconds.
        subject.pass(Duration::from_millis(1001)).await;
        subject.store.check(subject.key(ada, id), LIMITS.max_age).await.expect("the store answers").expect("alive");
    }
    for (n, (subject, id)) in created.into_iter().enumerate() {
        assert_eq!(subject.is_alive(subject.key(ada, id)).await, n >= 2, "{id}");
    }
}

/// Two users whose sessions are in one bucket under one tag, which makes one chance in 4,000 million.
fn twins() -> [Uuid; 2] {
    let mut seen = std::collections::HashMap::new();
    loop {
        let user_id = Uuid::now_v7();
        if let Some(other) = seen.insert((bucket(user_id), tag(user_id)), user_id) {
            return [other, user_id];
        }
    }
}

async fn users_with_the_same_tag_are_kept_apart(group: Arc<Group>) {
    let [classic, compact] = both(&group);
    let [ada, eve] = twins();
    for (user_id, id) in [(ada, 'a'), (eve, 'e')] {
        assert_eq!(compact.create(&compact.session(user_id, id)).await, DONE);
        compact.store.check(compact.key(user_id, id), LIMITS.max_age).await.expect("the store answers");
    }
    let mine = compact.key(ada, 'a');
    let theirs = SessionKey { user_id: eve, ..mine };
    let listed = classic.store.list(eve).await.expect("the store answers");
    assert_eq!(listed.iter().map(|entry| entry.session_id).collect::<Vec<_>>(), [compact.key(eve, 'e').session_id]);
    assert!(compact.store.inspect(theirs).await.expect("the store answers").is_none());
    assert!(!compact.store.end(theirs).await.expect("the store answers"));
    assert_eq!(compact.store.owner(mine.session_id).await.expect("the store answers"), Some(mine));
    let replacing = NewSession { replaces: Some(mine.session_id), ..compact.session(eve, 'f') };
    assert_eq!(compact.create(&replacing).await, DONE);
    // As many as a user may have, and one more.
    assert_eq!(compact.create(&compact.session(eve, 'g')).await, DONE);
    assert_eq!(compact.create(&compact.session(eve, 'h')).await, Created::Done { evicted: 1, replaced: false });
    assert_eq!(compact.store.fence_off(eve, 2).await.expect("the store answers"), 3);
    assert!(compact.is_alive(mine).await, "nothing ended another user's session");
    assert_eq!(compact.create(&compact.session(ada, 'b')).await, DONE, "nor is there a fence before it");
    assert_eq!(compact.store.end_all(ada, None).await.expect("the store answers"), 2);
    assert!(!compact.is_alive(mine).await);
}

/// Asks Redis, by way of the store's own connection.
async fn ask<T: redis::FromRedisValue>(subject: &Subject, words: &[&str]) -> T {
    static ASKED: Operation = operation!("test");
    let SessionStore::Redis(store) = &*subject.store else { panic!("not in Redis") };
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    store.redis.command(&ASKED, &command).await.expect("Redis answers")
}

/// Nobody tells the index that a session was idle for too long or deleted by hand.
async fn an_index_loses_what_has_ended(group: Arc<Group>) {
    let [_, compact] = both(&group);
    let first = Uuid::now_v7();
    let index = format!("user:{{{:04x}}}:sessions", bucket(first));
    let mut others = (first.as_u128() + 1..).map(Uuid::from_u128).filter(|user_id| bucket(*user_id) == bucket(first));
    for n in 0..140 {
        let session = compact.session(others.next().expect("there are always more"), 'a');
        compact.create(&session).await;
        if n < 40 {
            compact.store.check(session.key, LIMITS.max_age).await.expect("the store answers").expect("alive");
        } else {
            assert!(ask::<bool>(&compact, &["DEL", &session_key(session.key)]).await);
        }
        let entries: usize = ask(&compact, &["LLEN", &index]).await;
        assert!(entries <= 70, "{entries} entries, for 40 sessions");
    }
    compact.create(&compact.session(first, 'a')).await;
    assert_eq!(compact.store.end_all(first, None).await.expect("the store answers"), 1);
    assert_eq!(compact.store.list(first).await.expect("the store answers"), []);
}

async fn an_index_outlives_its_sessions_whatever_the_clocks_say(group: Arc<Group>) {
    let now = Clock::system().now();
    for (days, expected) in [(-40, 1), (0, 1), (40, 41)] {
        let clock = Clock::fixed(now + jiff::SignedDuration::from_hours(24 * days));
        let compact = at(Arc::clone(&group), Compact, clock);
        let ada = Uuid::now_v7();
        compact.create(&compact.session(ada, 'a')).await;
        let index = format!("user:{{{:04x}}}:sessions", bucket(ada));
        let left = async || ask::<i64>(&compact, &["PTTL", &index]).await / 3_600_000;
        assert!(left().await >= 24 * expected, "a clock {days} days ahead: {} hours", left().await);
        // Nothing shortens it.
        let before = left().await;
        on(Arc::clone(&group), Compact).create(&compact.session(ada, 'b')).await;
        assert!(left().await >= before);
    }
}
