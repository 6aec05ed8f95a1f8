//! Tests of what only SQLite does, on real files, with other connections, threads and processes that interfere.
mod files;
mod locks;
mod migrations;
mod names;
mod opening;
mod processes;

use std::fs;
use std::path::{Path, PathBuf};

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::*;

struct Bench {
    dir: TempDir,
    store: SqliteUsers,
}

impl Bench {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        migrate(&dir.path().join("users.db")).await.unwrap();
        let store = open(&dir.path().join("users.db")).await;
        Self { dir, store }
    }

    fn path(&self) -> PathBuf {
        self.file("users.db")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn create(&self, email: &str) -> Result<User, UserStoreError> {
        self.store.create(new(email, None)).await
    }
}

async fn open(path: &Path) -> SqliteUsers {
    SqliteUsers::open(path, Clock::system()).await.unwrap()
}

async fn foreign(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn execute(db: &mut SqliteConnection, statement: &'static str) {
    sqlx::query(statement).execute(db).await.unwrap();
}

fn new(email: &str, username: Option<&str>) -> NewUser {
    NewUser { email: email.into(), username: username.map(Into::into), password_hash: "$argon2id$fake".into() }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn unavailable<T: fmt::Debug>(result: Result<T, UserStoreError>) -> String {
    match result {
        Err(error @ UserStoreError::Unavailable(_)) => error.to_string(),
        other => panic!("expected Unavailable, got {other:?}"),
    }
}

async fn assert_sound(path: &Path) {
    let mut db = foreign(path).await;
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut db).await.unwrap();
    assert_eq!(verdict, "ok");
}
