//! Without Redis: one replica, sessions in memory, for trying it out.
use std::process::Command;

use crate::fleet::Fleet;

#[tokio::test]
async fn sessions_in_memory() {
    let mut fleet = Fleet::builder().without_redis().unmigrated().env("SESSION_SECRET", "").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    assert_eq!(fleet[0].check(&session).await, 200);
    let other = fleet[0].login(&ada).await;
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    assert_eq!((fleet[0].check(&session).await, fleet[0].check(&other).await), (401, 200));

    // The log warns operators.
    let warned = |line: &serde_json::Value| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("memory"))
    };
    assert!(fleet[0].log().iter().any(warned), "{}", fleet[0].output_text());
    let readiness = fleet[0].ops("/readyz").await.expect(200).json();
    assert_eq!(readiness["sessions"]["store"], "memory");
    assert!(readiness["sessions"]["note"].as_str().is_some_and(|note| note.contains("one replica")), "{readiness}");

    // Users stay and sessions don't. Their cookies don't fit the next random secret.
    fleet[0].restart(&[]).await;
    assert_eq!(fleet[0].check(&other).await, 401);
    fleet[0].login(&ada).await;
}

/// `cargo run` in an empty directory prints commands to try, and they work.
#[tokio::test]
async fn what_it_prints_to_try_can_be_tried() {
    let unset = ["SESSION_SECRET", "COOKIE_SECURE", "ARGON2_MEMORY", "ARGON2_ITERATIONS", "HASH_QUEUE"];
    let builder = unset.into_iter().fold(Fleet::builder(), |builder, name| builder.env(name, ""));
    let fleet = builder.without_redis().unmigrated().start().await;
    // They are printed right after the line that says that the server is up.
    crate::fleet::within(crate::fleet::PATIENTLY, "something to try", async || {
        fleet[0].output_text().contains("Ctrl-C")
    })
    .await;
    let output = fleet[0].output_text();
    let lines: Vec<_> = output.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let mut answers = Vec::new();
    for line in &lines {
        let (line, directory) = ((*line).to_owned(), fleet.path().to_owned());
        let ran = tokio::task::spawn_blocking(move || {
            let mut shell = Command::new("sh");
            shell.args(["-c", &line]).current_dir(directory).env("no_proxy", "*").output()
        });
        let output = ran.await.expect("no panic").expect("a shell");
        assert!(output.status.success(), "curl must be installed: {}", String::from_utf8_lossy(&output.stderr));
        answers.push(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let expected = ["\"user_id\"", "Login successful", "\"session\"", "Logged out"];
    assert_eq!(answers.len(), expected.len(), "{lines:?}");
    for (answer, part) in answers.iter().zip(expected) {
        assert!(answer.contains(part), "{answers:?}");
    }
    let docs = output.split_whitespace().find(|word| word.ends_with("/docs")).expect("where the API is described");
    assert!(docs.contains("localhost:"), "{docs}");
}
