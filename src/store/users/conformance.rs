//! What every users' store must do, run against each engine.
//!
//! A test reaches its database only through the URL, as the server does. An engine adds its subject and its line in
//! `suite!`.
use std::any::Any;
use std::cell::Cell;
use std::time::Duration;

use futures::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use secrecy::ExposeSecret as _;

use super::names::{canonical, written};
use super::*;

/// An empty, migrated database for one test.
struct Subject {
    url: DatabaseUrl,
    store: UserStore,
    /// The directory or server that ends with the test.
    _kept: Box<dyn Any + Send>,
}

impl Subject {
    async fn new(url: DatabaseUrl, kept: impl Any + Send) -> Self {
        assert!(migrate(&url).await.unwrap().created);
        let store = UserStore::open(&url, Clock::system()).await.unwrap();
        Self { url, store, _kept: Box::new(kept) }
    }

    /// Opens another store on the same database, as another replica does.
    async fn open(&self, clock: Clock) -> UserStore {
        UserStore::open(&self.url, clock).await.unwrap()
    }

    async fn create(&self, email: &str) -> Result<User, UserStoreError> {
        self.store.create(new(email, None)).await
    }
}

async fn sqlite() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    Subject::new(DatabaseUrl::Sqlite(directory.path().join("users.db")), directory).await
}

async fn postgres() -> Subject {
    let empty = postgres::tests::empty().await;
    Subject::new(DatabaseUrl::Postgres(empty.url.clone()), empty).await
}

fn new(email: &str, username: Option<&str>) -> NewUser {
    NewUser { email: email.into(), username: username.map(Into::into), password_hash: "$argon2id$fake".into() }
}

/// Each test with each engine, by name: `conformance::on_sqlite::…`.
macro_rules! suite {
    ($($module:ident by $subject:ident),+: $tests:tt) => {
        $(suite! { @engine $module $subject $tests })+
    };
    (@engine $module:ident $subject:ident { $($test:ident,)+ }) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    super::$test(super::$subject().await).await;
                }
            )+
        }
    };
}

suite! { on_sqlite by sqlite, on_postgres by postgres: {
    groups_raise_the_epoch_and_yield_to_other_changes,
    a_created_user_is_found_by_id_email_and_username,
    the_id_is_a_uuid_v7_of_the_time_of_creation,
    emails_and_usernames_are_unique_regardless_of_case_and_width,
    a_name_is_found_and_taken_in_all_its_spellings,
    what_was_stored_is_found_in_other_spellings,
    ensure_free_tells_what_create_would,
    the_default_username_is_the_local_part_with_a_number_if_taken,
    twelve_parallel_registrations_over_three_stores_make_one_account,
    parallel_registrations_of_one_local_part_get_different_usernames,
    list_pages_in_the_order_of_creation,
    an_import_can_be_tried_and_repeated,
    what_is_ready_answers,
    a_database_is_migrated_once,
    replace_password_takes_effect_once_per_epoch,
    of_parallel_changes_under_one_epoch_one_takes_effect,
    raise_epoch_never_lowers_and_yields_to_other_changes,
    upgrade_hash_yields_to_a_password_change_and_keeps_the_epoch,
    disabling_raises_the_epoch_once_hides_it_and_yields_to_other_changes,
    delete_yields_to_other_changes_and_frees_the_names,
} }

// Creating and finding.

async fn a_created_user_is_found_by_id_email_and_username(subject: Subject) {
    let made = subject.store.create(new("Ada@Example.org", Some("Countess"))).await.unwrap();
    assert_eq!((made.email.as_str(), made.username.as_str(), made.epoch), ("Ada@Example.org", "Countess", 1));
    assert_eq!(made.disabled_at, None);
    for found in [
        subject.store.by_id(made.id).await.unwrap(),
        subject.store.by_login("aDA@example.ORG").await.unwrap(),
        subject.store.by_login("countess").await.unwrap(),
    ] {
        let found = found.expect("the user");
        assert_eq!((found.id, found.email, found.created_at), (made.id, made.email.clone(), made.created_at));
        assert_eq!(found.password_hash.expose_secret(), "$argon2id$fake");
    }
    assert!(subject.store.by_login("nobody").await.unwrap().is_none());
    assert!(subject.store.by_id(Uuid::nil()).await.unwrap().is_none());
}

async fn the_id_is_a_uuid_v7_of_the_time_of_creation(subject: Subject) {
    let now: Timestamp = "2026-02-03T04:05:06.789Z".parse().unwrap();
    let store = subject.open(Clock::fixed(now)).await;
    let user = store.create(new("ada@example.org", None)).await.unwrap();
    assert_eq!(user.id.get_version_num(), 7);
    let (seconds, nanoseconds) = user.id.get_timestamp().unwrap().to_unix();
    assert_eq!(seconds * 1000 + u64::from(nanoseconds) / 1_000_000, u64::try_from(now.as_millisecond()).unwrap());
    assert_eq!(user.created_at, now);
}

async fn emails_and_usernames_are_unique_regardless_of_case_and_width(subject: Subject) {
    subject.store.create(new("jörg.ÄRGER@example.org", Some("Ångström"))).await.unwrap();
    // Upper case; full-width letters; decomposed umlauts.
    for email in ["JÖRG.ärger@EXAMPLE.ORG", "jörg.ärger@ｅｘａｍｐｌｅ.org", "jo\u{308}rg.a\u{308}rger@example.org"]
    {
        let refused = subject.store.create(new(email, Some("other"))).await;
        assert!(matches!(refused, Err(UserStoreError::EmailTaken)), "{email}: {refused:?}");
        assert!(subject.store.by_login(email).await.unwrap().is_some(), "{email}");
    }
    for username in ["ÅNGSTRÖM", "ångström", "a\u{30a}ngstro\u{308}m", "\u{212b}ngström"] {
        let refused = subject.store.create(new("other@example.org", Some(username))).await;
        assert!(matches!(refused, Err(UserStoreError::UsernameTaken)), "{username}: {refused:?}");
    }
    let both = subject.store.create(new("JÖRG.ÄRGER@example.org", Some("Ångström"))).await;
    assert!(matches!(both, Err(UserStoreError::EmailTaken)), "{both:?}");
}

async fn a_name_is_found_and_taken_in_all_its_spellings(subject: Subject) {
    for (email, username, spellings) in [
        ("ada@example.org", "ada", &["ada@example.org ", "\u{a0}ADA@example.org\n", " Ada", "ａｄａ\t"][..]),
        ("u@bücher.example", "ux", &["u@xn--bcher-kva.example", "U@BÜCHER.example", "u@XN--BCHER-kva.EXAMPLE"]),
        ("ΣΊΣΥΦΟΣ@example.org", "Straße", &["σίσυφοσ@example.org", "σίσυφος@example.org", "STRASSE", "strasse"]),
    ] {
        let user = subject.store.create(new(email, Some(username))).await.unwrap();
        for spelling in spellings.iter().chain([&email, &username]) {
            let found = subject.store.by_login(spelling).await.unwrap().unwrap_or_else(|| panic!("{spelling:?}"));
            assert_eq!(found.id, user.id, "{spelling:?}");
            let (other, taken) = if spelling.contains('@') {
                (new(spelling, Some("other")), "the e-mail address is taken")
            } else {
                (new("other@example.org", Some(spelling)), "the username is taken")
            };
            assert_eq!(subject.store.create(other).await.unwrap_err().to_string(), taken, "{spelling:?}");
        }
        let (email, username) = (spellings[0], spellings[spellings.len() - 1]);
        if email.contains('@') && !username.contains('@') {
            assert!(matches!(subject.store.ensure_free(email, None).await, Err(UserStoreError::EmailTaken)));
            let username = subject.store.ensure_free("other@example.org", Some(username)).await;
            assert!(matches!(username, Err(UserStoreError::UsernameTaken)));
        }
    }
    // A name with invisible characters is refused; it is neither the same name nor another one.
    for invisible in ['\u{fe0f}', '\u{34f}', '\u{1160}', '\u{e0061}'] {
        assert!(subject.store.by_login(&format!("ada{invisible}")).await.unwrap().is_none());
    }
}

/// A name is found when it is typed later in another case and normalisation form.
async fn what_was_stored_is_found_in_other_spellings(subject: Subject) {
    let registered = Cell::new(0);
    let names = ("[^@\\pC\\s]{1,12}", "[^@\\pC\\s]{1,12}", "[a-zà-ÿα-ώа-я]{1,8}");
    let check = |(username, local, domain): (String, String, String)| {
        let (username, email) = (written(&username), written(&format!("{local}@{domain}.org")));
        if canonical(&username).is_err() || canonical(&email).is_err() || username.contains('@') {
            return Ok(());
        }
        let wait = tokio::runtime::Handle::current();
        let Ok(user) = wait.block_on(subject.store.create(new(&email, Some(&username)))) else { return Ok(()) };
        registered.set(registered.get() + 1);
        for name in [username, email] {
            for typed in [name.clone(), format!(" {name} "), name.to_lowercase(), login_key(&name)] {
                let found = wait.block_on(subject.store.by_login(&typed)).unwrap();
                prop_assert_eq!(found.map(|found| found.id), Some(user.id), "{} for {}", typed, name);
            }
        }
        Ok(())
    };
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    tokio::task::block_in_place(|| TestRunner::new(config).run(&names, check)).unwrap();
    assert!(registered.get() > 20, "{} names are too few to tell", registered.get());
}

async fn ensure_free_tells_what_create_would(subject: Subject) {
    subject.store.create(new("ada@example.org", Some("ada"))).await.unwrap();
    let ensure = async |email, username| subject.store.ensure_free(email, username).await;
    assert!(matches!(ensure("ADA@example.org", Some("ada")).await, Err(UserStoreError::EmailTaken)));
    assert!(matches!(ensure("bob@example.org", Some("ADA")).await, Err(UserStoreError::UsernameTaken)));
    assert!(ensure("bob@example.org", Some("bob")).await.is_ok());
    assert!(ensure("ada@example.net", None).await.is_ok());
}

async fn the_default_username_is_the_local_part_with_a_number_if_taken(subject: Subject) {
    let mut names = Vec::new();
    for host in 0..12 {
        names.push(subject.create(&format!("Info@host{host}.example")).await.unwrap().username);
    }
    assert_eq!(names[..3], ["Info", "Info2", "Info3"]);
    assert!(names.iter().all(|name| name.starts_with("Info") && name.len() <= "Info9999".len()), "{names:?}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 12);

    assert_eq!(subject.create("ada+news@example.org").await.unwrap().username, "ada+news");
    assert_eq!(subject.create("\"a b@c\"@example.org").await.unwrap().username, "-a-b-c-");
    let long = subject.create(&format!("{}@example.org", "ü".repeat(80))).await.unwrap().username;
    assert_eq!(long, "ü".repeat(64));
    let second = subject.create(&format!("{}@example.net", "ü".repeat(80))).await.unwrap().username;
    assert_eq!(second, "ü".repeat(63) + "2");
}

async fn twelve_parallel_registrations_over_three_stores_make_one_account(subject: Subject) {
    let stores = [subject.store.clone(), subject.open(Clock::system()).await, subject.open(Clock::system()).await];
    let attempts = (0..12).map(|n| {
        let store = stores[n % 3].clone();
        let email = if n % 2 == 0 { "ada@example.org" } else { "ADA@EXAMPLE.ORG" };
        tokio::spawn(async move { store.create(new(email, None)).await })
    });
    let results: Vec<_> = join_all(attempts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|r| matches!(r, Err(UserStoreError::EmailTaken))).count(), 11, "{results:?}");
    assert_eq!(stores[2].list(None, 100).await.unwrap().len(), 1);
}

async fn parallel_registrations_of_one_local_part_get_different_usernames(subject: Subject) {
    let stores = [subject.store.clone(), subject.open(Clock::system()).await, subject.open(Clock::system()).await];
    let attempts = (0..24).map(|n: usize| {
        let store = stores[n % 3].clone();
        tokio::spawn(async move { store.create(new(&format!("info@host{n}.example"), None)).await })
    });
    for result in join_all(attempts).await {
        result.unwrap().unwrap();
    }
}

async fn list_pages_in_the_order_of_creation(subject: Subject) {
    let clock = Clock::fixed(Timestamp::from_millisecond(1_700_000_000_000).unwrap());
    let store = subject.open(clock.clone()).await;
    for n in 0..5 {
        store.create(new(&format!("u{n}@example.org"), None)).await.unwrap();
        clock.advance(Duration::from_millis(1));
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.into_iter().map(|user| user.username));
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4"]);
}

async fn an_import_can_be_tried_and_repeated(subject: Subject) {
    let taken = subject.create("taken@example.org").await.unwrap();
    let made: Timestamp = "2020-02-03T04:05:06.789Z".parse().unwrap();
    let users: Vec<_> = [("ada@example.org", "ada"), ("TAKEN@example.org", "other"), ("eve@example.org", "Taken")]
        .iter()
        .map(|(email, username)| Imported::new(new(email, Some(username)), made).unwrap())
        .collect();
    for (dry_run, count) in [(true, 1), (false, 2), (false, 2)] {
        let outcomes = subject.store.import(users.clone(), dry_run).await.unwrap();
        let as_expected =
            matches!(outcomes[..], [None, Some(UserStoreError::EmailTaken), Some(UserStoreError::UsernameTaken)]);
        assert!(as_expected, "{outcomes:?}");
        assert_eq!(subject.store.list(None, 10).await.unwrap().len(), count, "dry run: {dry_run}");
    }
    let ada = subject.store.by_login("ada").await.unwrap().unwrap();
    assert_eq!((ada.id, ada.created_at), (users[0].id(), made));
    assert_eq!(subject.store.by_login("taken").await.unwrap().unwrap().id, taken.id);
}

async fn what_is_ready_answers(subject: Subject) {
    subject.store.ping().await.unwrap();
    subject.create("ada@example.org").await.unwrap();
    let usage = subject.store.usage();
    let open = usage.pools.iter().map(|pool| pool.idle + pool.busy).sum::<usize>();
    assert!(open > 0 && usage.pools.iter().all(|pool| pool.idle + pool.busy <= pool.limit), "{usage:?}");
    survey(&subject.url).await.unwrap();
}

async fn a_database_is_migrated_once(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    let again = migrate(&subject.url).await.unwrap();
    assert_eq!((again.created, again.applied, again.named), (false, Vec::new(), 0));
    assert_eq!(again.unusual, UnusualNames::default());
    assert!(subject.store.by_id(user.id).await.unwrap().is_some());
}

// Changes that end sessions.

async fn replace_password_takes_effect_once_per_epoch(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert_eq!(subject.store.replace_password(user.id, 1, &"first".into()).await.unwrap(), Some(2));
    assert_eq!(subject.store.replace_password(user.id, 1, &"overtaken".into()).await.unwrap(), None);
    let stored = subject.store.by_id(user.id).await.unwrap().unwrap();
    assert_eq!((stored.password_hash.expose_secret(), stored.epoch), ("first", 2));
    assert_eq!(subject.store.replace_password(Uuid::nil(), 1, &"x".into()).await.unwrap(), None);
}

async fn raise_epoch_never_lowers_and_yields_to_other_changes(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert_eq!(subject.store.raise_epoch(user.id, 1, 5).await.unwrap(), Some(5));
    assert_eq!(subject.store.raise_epoch(user.id, 5, 3).await.unwrap(), Some(5));
    assert_eq!(subject.store.raise_epoch(user.id, 1, 9).await.unwrap(), None);
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), Some(5));
    assert_eq!(subject.store.disable(user.id, 5).await.unwrap(), Some(6));
    assert_eq!(subject.store.raise_epoch(user.id, 6, 9).await.unwrap(), None);
}

async fn upgrade_hash_yields_to_a_password_change_and_keeps_the_epoch(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert!(subject.store.upgrade_hash(user.id, &user.password_hash, &"stronger".into()).await.unwrap());
    assert!(!subject.store.upgrade_hash(user.id, &user.password_hash, &"late".into()).await.unwrap());
    let stored = subject.store.by_id(user.id).await.unwrap().unwrap();
    assert_eq!((stored.password_hash.expose_secret(), stored.epoch), ("stronger", 1));
}

/// Each change is one statement. If one statement read the epoch and another wrote it, several changes would take
/// effect.
async fn of_parallel_changes_under_one_epoch_one_takes_effect(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    let stores = [subject.store.clone(), subject.open(Clock::system()).await, subject.open(Clock::system()).await];
    for epoch in 1..8 {
        let changes = (0..12).map(|n| {
            let store = stores[n % 3].clone();
            async move {
                let hash = format!("hash {n}").into();
                match n % 4 {
                    0 => store.replace_groups(user.id, epoch, &Groups::parse(&format!("g{n}"))).await,
                    1 => store.raise_epoch(user.id, epoch, epoch + 1).await,
                    _ => store.replace_password(user.id, epoch, &hash).await,
                }
            }
        });
        let results: Vec<_> = join_all(changes).await.into_iter().map(Result::unwrap).collect();
        let done: Vec<_> = results.iter().flatten().collect();
        assert_eq!(done, [&(epoch + 1)], "{results:?}");
    }
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), Some(8));
}

async fn disabling_raises_the_epoch_once_hides_it_and_yields_to_other_changes(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert_eq!(subject.store.disable(user.id, 7).await.unwrap(), None);
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), Some(1));
    assert_eq!(subject.store.disable(user.id, 1).await.unwrap(), Some(2));
    assert_eq!(subject.store.disable(user.id, 2).await.unwrap(), None);
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), None);
    assert!(subject.store.by_login("ada").await.unwrap().unwrap().disabled_at.is_some());
    assert!(subject.store.enable(user.id).await.unwrap());
    assert!(!subject.store.enable(user.id).await.unwrap());
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), Some(2));
    assert!(subject.store.by_login("ada").await.unwrap().unwrap().disabled_at.is_none());
    assert_eq!(subject.store.disable(Uuid::nil(), 1).await.unwrap(), None);
}

async fn groups_raise_the_epoch_and_yield_to_other_changes(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert!(user.groups.is_empty());
    let staff = Groups::parse("staff,admins");
    assert_eq!(subject.store.replace_groups(user.id, 7, &staff).await.unwrap(), None);
    assert_eq!(subject.store.replace_groups(user.id, 1, &staff).await.unwrap(), Some(2));
    let stored = subject.store.by_login("ada").await.unwrap().unwrap();
    assert_eq!((stored.groups.as_str(), stored.epoch), ("admins,staff", 2));
    assert_eq!(subject.store.replace_groups(user.id, 2, &Groups::default()).await.unwrap(), Some(3));
    assert!(subject.store.by_id(user.id).await.unwrap().unwrap().groups.is_empty());
    assert_eq!(subject.store.replace_groups(Uuid::nil(), 1, &staff).await.unwrap(), None);
}

async fn delete_yields_to_other_changes_and_frees_the_names(subject: Subject) {
    let user = subject.create("ada@example.org").await.unwrap();
    assert!(!subject.store.delete(user.id, 7).await.unwrap());
    assert!(subject.store.delete(user.id, 1).await.unwrap());
    assert!(!subject.store.delete(user.id, 1).await.unwrap());
    assert_eq!(subject.store.current_epoch(user.id).await.unwrap(), None);
    subject.create("ada@example.org").await.unwrap();
}
