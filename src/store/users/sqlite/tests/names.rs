//! Canonical names: filled in by `migrate`, beside accounts and replicas of the previous release.
use sqlx::migrate::Migrator;

use super::*;
use crate::store::users::names::{RefusedName, Unusual, UnusualNames, Why};

/// Inserts a user as the release before canonical names did. Its rule for names was NFKC in lower case, without
/// trimming.
async fn insert_as_before(db: &mut SqliteConnection, age: u32, email: &str, username: &str) -> Uuid {
    use unicode_normalization::UnicodeNormalization as _;
    let key = |name: &str| name.nfkc().collect::<String>().to_lowercase().nfkc().collect::<String>();
    let id = id_at(Timestamp::from_second(1_700_000_000 - i64::from(age)).unwrap()).unwrap();
    sqlx::query(
        "INSERT INTO users (id, email, email_key, username, username_key, password_hash, created_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, 'x', 0, 0)",
    )
    .bind(id.to_string())
    .bind(email)
    .bind(key(email))
    .bind(username)
    .bind(key(username))
    .execute(db)
    .await
    .unwrap();
    id
}

#[tokio::test]
async fn accounts_of_the_release_before_keep_their_names_and_share_none() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let before = Migrator::with_migrations(schema::embedded().migrations[..1].to_vec());
    schema::migrate_with(&path, before).await.unwrap();
    let mut db = foreign(&path).await;
    let mut insert = async |age, email, username| insert_as_before(&mut db, age, email, username).await;
    // The younger one is spelt in the canonical way; the oldest of three that aren't; one with invisible characters.
    let older = insert(9, "σίσυφος@example.org", "Straße").await;
    let younger = insert(8, "σίσυφοσ@example.org", "strasse").await;
    let unicode = insert(7, "u@bücher.example", "u1").await;
    let punycode = insert(6, "u@xn--bcher-kva.example", "u2").await;
    let [sharp, capital] = [insert(5, "ß@example.org", "groß").await, insert(4, "ẞß@example.org", "groẞ\u{df}").await];
    let hidden = insert(3, "ada@example.org", "ada\u{fe0f}").await;
    let plain = insert(2, "ada@example.net", "ada").await;

    let report = migrate(&path).await.unwrap();
    assert_eq!(report.applied, [2, 3]);
    let unusual = |field, user_id, why| Unusual { user_id, field, why };
    assert_eq!(
        report.unusual.first,
        [
            unusual("email", older, Why::SharedWith(younger)),
            unusual("username", older, Why::SharedWith(younger)),
            unusual("email", unicode, Why::SharedWith(punycode)),
            unusual("username", hidden, Why::Refused(RefusedName::Invisible)),
        ]
    );
    assert_eq!((report.unusual.shared, report.unusual.refused, report.unusual.pending), (3, 1, 0));
    assert_eq!(report.named, 16 - 4);

    let store = open(&path).await;
    let found = async |name: &str| store.by_login(name).await.unwrap().map(|user| user.id);
    // Spellings that found an account before still find it; any other spelling finds the account that has the name.
    for (name, id) in [
        ("σίσυφος@example.org", older),
        ("Σίσυφος@EXAMPLE.org", older),
        ("Straße", older),
        ("σίσυφοσ@example.org", younger),
        ("STRASSE", younger),
        ("u@BÜCHER.example", unicode),
        ("U@xn--bcher-kva.example", punycode),
        ("ß@example.org", sharp),
        ("SS@example.org", sharp),
        ("grosS", sharp),
        ("ssss@example.org", capital),
        ("ADA\u{fe0f}", hidden),
        (" ada", plain),
    ] {
        assert_eq!(found(name).await, Some(id), "{name}");
    }
    // No new account gets any of these names.
    for email in ["ΣΊΣΥΦΟΣ@example.org", "u@bücher.example", "SS@example.org"] {
        let refused = store.create(new(email, Some("new"))).await;
        assert!(matches!(refused, Err(UserStoreError::EmailTaken)), "{email}: {refused:?}");
    }

    let again = migrate(&path).await.unwrap();
    assert_eq!((again.named, again.unusual), (0, report.unusual));
    // When an account is deleted, the next `migrate` gives its name to the account that shared it.
    assert!(store.delete(younger, 1).await.unwrap());
    assert_eq!(migrate(&path).await.unwrap().named, 2);
    assert_eq!(found("strasse").await, Some(older));
    assert_sound(&path).await;
}

/// The old replica doesn't know canonical names. Its accounts get them at the next `migrate`.
#[tokio::test]
async fn a_replica_of_the_release_before_goes_on_registering() {
    let bench = Bench::new().await;
    let mut old = foreign(&bench.path()).await;
    let id = insert_as_before(&mut old, 1, "bücher@example.org", "strasse").await;
    let found = async |name: &str| bench.store.by_login(name).await.unwrap().map(|user| user.id);
    for name in ["BÜCHER@example.org", "strasse", "Straße"] {
        assert_eq!(found(name).await, Some(id), "{name}");
    }
    for username in ["STRASSE", "straße"] {
        let refused = bench.store.create(new("new@example.org", Some(username))).await;
        assert!(matches!(refused, Err(UserStoreError::UsernameTaken)), "{username}: {refused:?}");
    }
    let found_by_survey = survey(&bench.path()).await.unwrap().unusual;
    assert_eq!((found_by_survey.pending, found_by_survey.shared), (2, 0));
    assert_eq!(migrate(&bench.path()).await.unwrap().named, 2);
    assert_eq!(survey(&bench.path()).await.unwrap().unusual, UnusualNames::default());

    // The old replica's own statement finds accounts that were created by the present rule.
    bench.create("Ämter@example.org").await.unwrap();
    let by_key = sqlx::query_scalar::<_, String>("SELECT email FROM users WHERE email_key = 'ämter@example.org'");
    assert_eq!(by_key.fetch_one(&mut old).await.unwrap(), "Ämter@example.org");
}

#[tokio::test]
async fn names_of_thousands_of_accounts_are_filled_in_beside_a_running_server() {
    let bench = Bench::new().await;
    let mut db = foreign(&bench.path()).await;
    let many = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2345) \
                INSERT INTO users (id, email, email_key, username, username_key, password_hash, created_at, updated_at) \
                SELECT printf('01900000-0000-7000-8000-%012x', n), n || '@x.org', n || '@x.org', n, n, 'x', 0, 0 FROM n";
    execute(&mut db, many).await;
    let path = bench.path();
    let (migrated, created) = tokio::join!(migrate(&path), async {
        let mut created = 0;
        for n in 0..20 {
            bench.create(&format!("new{n}@example.org")).await.unwrap();
            created += 1;
        }
        created
    });
    assert_eq!((migrated.unwrap().named, created), (2 * 2345, 20));
}

#[tokio::test]
async fn names_are_looked_up_by_index() {
    let bench = Bench::new().await;
    let mut db = foreign(&bench.path()).await;
    for field in ["email", "username"] {
        let statement = format!(
            "EXPLAIN QUERY PLAN SELECT id FROM users WHERE {field}_key IN (?1, ?2) OR {field}_canonical = ?2 \
             ORDER BY {field}_key = ?1 DESC, {field}_canonical = ?2 DESC LIMIT 1"
        );
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(statement)).bind("a").bind("b").fetch_all(&mut db).await.unwrap();
        assert!(plan.iter().all(|step| !step.3.starts_with("SCAN")), "{plan:?}");
    }
}
