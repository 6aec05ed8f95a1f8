//! A backup of the users in PostgreSQL, and its restoration: the commands of docs/operations.md, with PostgreSQL's own
//! tools.
use std::process::Command;

use serde_json::json;

use crate::fleet::postgres::{Postgres, hand_over, program};
use crate::fleet::{Engine, Fleet, PASSWORD, Session};

const NEW_PASSWORD: &str = "staple a battery horse";

/// Runs a tool against a server, by its socket.
fn tool(server: &Postgres, name: &str, arguments: &[&str]) -> String {
    let mut command: Command = program(name);
    command
        .arg("--host")
        .arg(&server.directory)
        .arg("--port")
        .arg(server.port.to_string())
        .args(["--username", "authfleet"]);
    let done = command.args(arguments).output().expect("a tool of PostgreSQL's");
    assert!(done.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The users are as they were, and no session from before the restoration is alive.
#[tokio::test]
async fn a_restored_database_has_the_users_of_then_and_no_sessions() {
    let mut fleet = Fleet::start_on(Engine::OwnPostgres, 2).await;
    let ada = fleet[0].register("ada").await;
    let before = fleet[0].login(&ada).await;
    let directory = fleet.path().join("backup");
    std::fs::create_dir(&directory).expect("a directory");
    hand_over(&directory);
    let file = directory.join("users.dump");
    let file = file.to_str().expect("UTF-8");
    let server = fleet.postgres.as_ref().expect("a server");
    tool(server, "pg_dump", &["--format=custom", "--file", file, "authfleet"]);

    // What happens after the backup is lost by restoring it: a new password, a new account.
    let change = json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD });
    let answer = fleet[0].post("/auth/password").session(&before).json(&change).send().await;
    let after = Session::opened_by(&answer);
    let eve = fleet[0].register("eve").await;
    let eves = fleet[1].login(&eve).await;

    let listed = program("pg_restore").args(["--list", file]).output().expect("pg_restore");
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.contains("TABLE DATA public users"), "the backup is whole: {listed}");
    for replica in 0..2 {
        fleet[replica].kill();
    }
    assert_eq!(fleet.redis.run::<String>(&["FLUSHDB"]), "OK");
    let server = fleet.postgres.as_ref().expect("a server");
    tool(server, "pg_restore", &["--clean", "--if-exists", "--single-transaction", "--dbname=authfleet", file]);
    fleet.command(&["migrate"], &[]).await.expect_code(0);
    for replica in 0..2 {
        fleet[replica].start().await;
    }

    for session in [&before, &after, &eves] {
        assert_eq!(fleet[1].check(session).await, 401);
    }
    fleet[0].try_login(&ada.email, NEW_PASSWORD).send().await.expect(401);
    fleet[0].try_login(&eve.email, PASSWORD).send().await.expect(401);
    let session = fleet[1].login(&ada).await;
    assert_eq!(fleet[0].check(&session).await, 200);
    assert_eq!(fleet.query("SELECT username FROM users").await, ["ada"]);
}
