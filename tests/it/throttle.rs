//! Limits on guessing passwords and on registering, counted over all replicas (ASVS 5.0 6.3.1; NIST SP 800-63B-4
//! §3.2.2).
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::fleet::{Answer, Builder, Fleet, PASSWORD, Session};

const WRONG: &str = "a wrong password";

/// Three replicas that believe `X-Forwarded-For`, so that a test has many clients.
fn behind_a_proxy() -> Builder {
    Fleet::builder().replicas(3).env("TRUSTED_PROXIES", "127.0.0.1").env("LOGIN_FAILURES_PER_ACCOUNT", "1000")
}

async fn login_from(fleet: &Fleet, replica: usize, ip: &str, identifier: &str, password: &str) -> Answer {
    fleet[replica].try_login(identifier, password).header("x-forwarded-for", ip).send().await
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("Retry-After in seconds")
}

/// How many passwords were hashed or verified by all replicas together.
async fn hashes(fleet: &Fleet) -> f64 {
    let mut sum = 0.0;
    for replica in fleet.replicas() {
        sum += replica.metric("authfleet_hash_duration_seconds_count", &[]).await;
    }
    sum
}

#[tokio::test]
async fn asvs_6_3_1_an_account_has_one_limit_over_all_replicas_and_names() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ACCOUNT", "6").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let session = fleet[0].login(&ada).await;
    for (n, name) in
        ["ada@example.org", "ada", "ADA@example.org", "Ada", "ａｄａ", "ada@EXAMPLE.org"].iter().enumerate()
    {
        let answer = login_from(&fleet, n % 3, &format!("203.0.113.{n}"), name, WRONG).await;
        answer.expect_problem(401, "invalid_credentials");
    }
    // The password is no longer verified, so a refusal says nothing about it. Nor does it reveal that both names belong
    // to one account: each has had three failures of its own, and is refused like a name without an account.
    for name in ["ada@example.org", "ada"] {
        for n in 0..3 {
            let refused = login_from(&fleet, n, "198.51.100.1", name, PASSWORD).await;
            assert_eq!(refused.expect_problem(401, "invalid_credentials").header("set-cookie"), None);
        }
        let refused = login_from(&fleet, 0, "198.51.100.1", name, PASSWORD).await;
        assert_eq!(refused.expect_problem(429, "throttled").header("set-cookie"), None);
    }
    // The limit holds for every call that takes the password.
    let change = json!({ "current_password": PASSWORD, "new_password": "staple a battery horse" });
    let change = fleet[1].post("/auth/password").session(&session).json(&change).send().await;
    change.expect_problem(429, "throttled");
    let delete = fleet[1].call("DELETE", "/auth/account").session(&session).json(&json!({ "password": PASSWORD }));
    delete.send().await.expect_problem(429, "throttled");
    // Other accounts aren't affected, and nobody is logged out.
    assert_eq!(fleet[2].check(&session).await, 200);
    fleet[0].login(&eve).await;
}

/// Otherwise, throttling would reveal which names have an account, or which names belong to one account (ASVS 5.0
/// 6.3.8).
#[tokio::test]
async fn asvs_6_3_8_names_without_account_are_throttled_alike() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ACCOUNT", "3").start().await;
    fleet[0].register("ada").await;
    fleet[0].register("grace").await;
    // A name with an account, its other name, and two names without one. Answers may differ only by the request itself.
    let mut seen = Vec::new();
    for names in [["ada@example.org", "ada"], ["nobody@example.org", "nobody"], ["grace", "grace@example.org"]] {
        let mut answers = Vec::new();
        for name in names {
            for n in 0..5 {
                let answer = login_from(&fleet, n % 3, "203.0.113.7", name, WRONG).await;
                let mut headers: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
                headers.sort();
                answers.push((answer.status, headers, answer.text()));
            }
        }
        let statuses: Vec<_> = answers.iter().map(|(status, ..)| *status).collect();
        assert_eq!(statuses, [401, 401, 401, 429, 429, 401, 401, 401, 429, 429], "{names:?}");
        seen.push(answers);
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[2], seen[1]);
    login_from(&fleet, 0, "203.0.113.7", "NOBODY@Example.ORG", WRONG).await.expect_problem(429, "throttled");
    // Each costs a hash, also for a name without an account, so the time is the same.
    let hashed = hashes(&fleet).await - 2.0;
    assert!((hashed - 18.0).abs() < 0.5, "{hashed} passwords were hashed for 18 answers of 401");
}

#[tokio::test]
async fn asvs_6_3_1_an_address_has_one_limit_over_all_accounts() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ADDRESS", "6").start().await;
    let ada = fleet[0].register("ada").await;
    for n in 0..6 {
        let answer = login_from(&fleet, n % 3, "203.0.113.7", &format!("user-{n}"), WRONG).await;
        answer.expect_problem(401, "invalid_credentials");
    }
    for replica in 0..3 {
        login_from(&fleet, replica, "203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
        login_from(&fleet, replica, "192.0.2.1, 203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
    }
    // The same user signs in from another address. That doesn't clear the failures of the first one.
    let elsewhere = login_from(&fleet, 0, "203.0.113.8", &ada.email, PASSWORD).await;
    assert_eq!(fleet[1].check(&Session::opened_by(&elsewhere)).await, 200);
    login_from(&fleet, 1, "203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
}

#[tokio::test]
async fn asvs_6_3_1_ipv6_clients_are_counted_by_64() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ADDRESS", "3").start().await;
    fleet[0].register("ada").await;
    for (n, host) in ["1", "ffff:ffff:ffff:ffff", "dead:beef:0:1"].iter().enumerate() {
        let ip = format!("2001:db8:1:2:{}", if host.contains(':') { (*host).to_owned() } else { format!(":{host}") });
        login_from(&fleet, n, &ip, "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    login_from(&fleet, 0, "2001:db8:1:2:a:b:c:d", "ada", PASSWORD).await.expect_problem(429, "throttled");
    login_from(&fleet, 0, "[2001:db8:1:2::9]:4711", "ada", PASSWORD).await.expect_problem(429, "throttled");
    login_from(&fleet, 0, "2001:db8:1:3::1", "ada", PASSWORD).await.expect(200);
    // An IPv4 address counts as one in either notation.
    for n in 0..3 {
        login_from(&fleet, n, "::ffff:203.0.113.7", "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    login_from(&fleet, 0, "203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
}

/// ASVS 5.0 15.3.4.
#[tokio::test]
async fn asvs_15_3_4_made_up_addresses_change_nothing() {
    for (trusted, limit_hit_by) in [("", "127.0.0.1"), ("198.51.100.0/24", "127.0.0.1")] {
        let fleet = Fleet::builder().env("TRUSTED_PROXIES", trusted).env("LOGIN_FAILURES_PER_ADDRESS", "3");
        let fleet = fleet.env("LOGIN_FAILURES_PER_ACCOUNT", "1000").start().await;
        fleet[0].register("ada").await;
        for n in 0..3 {
            let answer = login_from(&fleet, 0, &format!("203.0.113.{n}"), "ada", WRONG).await;
            answer.expect_problem(401, "invalid_credentials");
        }
        let spoofed = fleet[0].try_login("ada", PASSWORD).header("x-forwarded-for", "203.0.113.99");
        let spoofed = spoofed.header("forwarded", "for=203.0.113.99").header("x-real-ip", "203.0.113.99");
        spoofed.send().await.expect_problem(429, "throttled");
        let key = format!("throttle:{{address:{limit_hit_by}}}:failures");
        assert_eq!(fleet.redis.keys("throttle:{address:*failures"), [key]);
    }
    // Through a proxy that appends, only what the proxy itself saw counts.
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ADDRESS", "3").start().await;
    fleet[0].register("ada").await;
    for n in 0..3 {
        let forwarded = format!("198.51.100.{n}, 203.0.113.7");
        login_from(&fleet, n, &forwarded, "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    login_from(&fleet, 0, "198.51.100.9, 203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
}

#[tokio::test]
async fn only_failures_are_charged_and_success_forgets_the_account_s() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ACCOUNT", "3").start().await;
    let ada = fleet[0].register("ada").await;
    let failures =
        |subject: &str| -> Option<u32> { fleet.redis.run(&["GET", &format!("throttle:{{{subject}}}:failures")]) };
    let account = format!("account:{}", ada.id);
    for n in 0..10 {
        login_from(&fleet, n % 3, "203.0.113.7", "ada", PASSWORD).await.expect(200);
    }
    assert_eq!((failures(&account), failures("address:203.0.113.7")), (None, None));
    // A request that contains no password isn't charged either.
    fleet[0].post("/auth/login").json(&json!({})).send().await.expect_problem(422, "validation_failed");
    fleet[0].post("/auth/login").send().await.expect_problem(415, "unsupported_media_type");
    assert_eq!(failures(&account), None);
    for round in 0..3 {
        for n in 0..2 {
            login_from(&fleet, n, "203.0.113.7", "ada", WRONG).await.expect_problem(401, "invalid_credentials");
        }
        assert_eq!(failures(&account), Some(2));
        login_from(&fleet, round, "203.0.113.7", "ada", PASSWORD).await.expect(200);
        assert_eq!(failures(&account), None, "forgotten");
        assert_eq!(
            failures("address:203.0.113.7"),
            Some(2 * (u32::try_from(round).expect("small") + 1)),
            "not forgotten"
        );
    }
    // A place belongs to an attempt in progress, and none is left behind.
    assert!(fleet.redis.keys("throttle:*pending").is_empty());
}

/// A client that waits as long as `Retry-After` says is admitted, and `Retry-After` isn't longer than needed.
#[tokio::test]
async fn retry_after_tells_the_truth() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ACCOUNT", "2").env("LOGIN_FAILURE_WINDOW", "3s").start().await;
    let ada = fleet[0].register("ada").await;
    let key = format!("throttle:{{account:{}}}:failures", ada.id);
    for n in 0..2 {
        login_from(&fleet, n, "203.0.113.7", "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    let left = || fleet.redis.run::<i64>(&["PTTL", &key]);
    let before = left();
    let refused = login_from(&fleet, 2, "203.0.113.7", "ada", PASSWORD).await.expect_problem(429, "throttled");
    let after = left();
    let told = i64::try_from(retry_after(&refused)).expect("a short time") * 1000;
    assert!(after <= told && told < before + 1000, "told {told} ms, left {before} to {after} ms");
    // Further attempts don't prolong it.
    login_from(&fleet, 0, "203.0.113.7", "ada", WRONG).await.expect_problem(429, "throttled");
    assert!(left() <= after);
    tokio::time::sleep(Duration::from_secs(retry_after(&refused))).await;
    login_from(&fleet, 1, "203.0.113.7", "ada", PASSWORD).await.expect(200);
}

/// ASVS 5.0 15.4.2: places are taken before a password is looked at, so attempts made at once can't pass the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_15_4_2_parallel_attempts_do_not_pass_the_limit() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ACCOUNT", "10").start().await;
    let ada = fleet[0].register("ada").await;
    let before = hashes(&fleet).await;
    let attempts = (0..30).map(|n| {
        let (ip, name) = (format!("203.0.113.{n}"), if n % 2 == 0 { "ada" } else { "ada@example.org" });
        let fleet = &fleet;
        async move { login_from(fleet, n % 3, &ip, name, WRONG).await }
    });
    let answers = join_all(attempts).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(401) + count(429) + count(503), 30, "{answers:?}");
    // Ten for the account, and at most ten more for each of its names, which are refused without verifying the
    // password.
    assert!((10..=20).contains(&count(401)), "{} answered 401", count(401));
    assert!(hashes(&fleet).await - before <= 20.0);
    let failures: u32 = fleet.redis.run(&["GET", &format!("throttle:{{account:{}}}:failures", ada.id)]);
    assert_eq!(failures, 10, "passwords that were looked at");
    for answer in answers {
        match answer.status {
            401 => answer.expect_problem(401, "invalid_credentials"),
            429 => answer.expect_problem(429, "throttled"),
            // Waited for earlier attempts, and was told to try again.
            _ => answer.expect_problem(503, "overloaded"),
        };
    }
}

/// Many users behind one address, such as an office, can sign in at once, because right passwords use up no limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_right_passwords_all_succeed() {
    let fleet = behind_a_proxy();
    let fleet = fleet.env("LOGIN_FAILURES_PER_ACCOUNT", "10").env("LOGIN_FAILURES_PER_ADDRESS", "10").start().await;
    fleet[0].register("ada").await;
    let attempts = (0..30).map(|n| login_from(&fleet, n % 3, "203.0.113.7", "ada", PASSWORD));
    for answer in join_all(attempts).await {
        answer.expect(200);
    }
}

/// An attempt that waits for others of its account is woken up. It doesn't poll Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_wait_hardly_ask_redis() {
    const CLIENTS: u64 = 12;
    let fleet = Fleet::builder().env("LOGIN_FAILURES_PER_ACCOUNT", "1").env("HASH_CONCURRENCY", "1");
    // The attempts take turns, and together take most of the time for which an attempt may wait.
    let fleet = fleet.env("ARGON2_MEMORY", "64MiB").start().await;
    fleet[0].register("ada").await;
    let mut meter = fleet.redis.meter();
    for answer in join_all((0..CLIENTS).map(|_| fleet[0].try_login("ada", PASSWORD).send())).await {
        assert!(matches!(answer.status, 200 | 503), "{}", answer.status);
    }
    let commands = meter.used().commands;
    let scripts: u64 = ["eval", "evalsha"].iter().filter_map(|name| commands.get(*name)).sum();
    // Each attempt asks seven times while it may wait, with five scripts each time, and once more when it is woken up.
    assert!(scripts <= 45 * CLIENTS, "{scripts} scripts for {CLIENTS} attempts");
}

/// A guess whose client hangs up still counts: what was hashed is charged and recorded (ASVS 5.0 6.3.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_6_3_1_hanging_up_does_not_make_a_guess_free() {
    let fleet = Fleet::builder().full_hashing().env("HASH_CONCURRENCY", "1").env("LOGIN_FAILURES_PER_ACCOUNT", "1000");
    let fleet = fleet.start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let before = hashes(&fleet).await;
    let change = json!({ "current_password": WRONG, "new_password": "staple a battery horse" });
    for n in 0..30 {
        let call = match n % 3 {
            0 => fleet[0].try_login("ada", WRONG),
            1 => fleet[0].try_login("nobody", WRONG),
            _ => fleet[0].post("/auth/password").session(&session).json(&change),
        };
        // Hangs up while the password is being hashed, or shortly before.
        drop(tokio::time::timeout(Duration::from_millis(8), call.try_send()).await);
    }
    let failures = || fleet.redis.run::<Option<u32>>(&["GET", "throttle:{address:127.0.0.1}:failures"]).unwrap_or(0);
    crate::fleet::within(crate::fleet::PATIENTLY, "nothing is under way", async || {
        fleet[0].metric("authfleet_hash_running", &[]).await + fleet[0].metric("authfleet_hash_queued", &[]).await < 0.5
            && fleet.redis.keys("throttle:*pending").is_empty()
    })
    .await;
    let hashed = hashes(&fleet).await - before;
    assert!(hashed >= 1.0, "some were hashed");
    assert!((hashed - f64::from(failures())).abs() < 0.5, "{hashed} hashed, {} charged", failures());
    let recorded = |line: &serde_json::Value| {
        matches!(line["event"].as_str(), Some("login_failed" | "password_confirmation_failed"))
    };
    crate::fleet::within(crate::fleet::PATIENTLY, "each is in the audit log", async || {
        u32::try_from(fleet[0].log().iter().filter(|line| recorded(line)).count()) == Ok(failures())
    })
    .await;
}

/// Somebody who has accounts knows their passwords, but can make the server hash them only so often. An account's limit
/// holds for all addresses together.
#[tokio::test]
async fn attempts_are_limited_too() {
    let fleet =
        behind_a_proxy().env("LOGIN_ATTEMPTS_PER_ACCOUNT", "4").env("LOGIN_ATTEMPTS_PER_ADDRESS", "6").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    for n in 0..4 {
        login_from(&fleet, n % 3, "203.0.113.7", "ada", PASSWORD).await.expect(200);
    }
    login_from(&fleet, 0, "203.0.113.8", "ada", PASSWORD).await.expect_problem(429, "throttled");
    for n in 0..2 {
        login_from(&fleet, n, "203.0.113.7", &eve.email, PASSWORD).await.expect(200);
    }
    login_from(&fleet, 0, "203.0.113.7", &eve.email, PASSWORD).await.expect_problem(429, "throttled");
    let session = Session::opened_by(&login_from(&fleet, 0, "203.0.113.9", &eve.email, PASSWORD).await);
    // A password that confirms a change counts like one at sign-in.
    let change = json!({ "current_password": PASSWORD, "new_password": "staple a battery horse" });
    let change =
        fleet[0].post("/auth/password").header("x-forwarded-for", "203.0.113.9").session(&session).json(&change);
    let changed = Session::opened_by(&change.send().await);
    assert_eq!(changed.user_id, eve.id);
    let delete = fleet[0].call("DELETE", "/auth/account").session(&changed).json(&json!({ "password": PASSWORD }));
    delete.send().await.expect_problem(429, "throttled");
    assert_ne!(ada.id, eve.id);
}

/// A new password that breaks the rules costs no hash, however often it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_with_accounts_of_its_own_does_not_stop_others() {
    const PEOPLE: usize = 15;
    let fleet = Fleet::builder().env("TRUSTED_PROXIES", "127.0.0.1").env("HASH_CONCURRENCY", "1");
    // A hash takes a few milliseconds, in any build.
    let fleet = fleet.env("ARGON2_MEMORY", "4MiB");
    let fleet = std::sync::Arc::new(fleet.env("HASH_QUEUE", "16").start().await);
    let mut attackers = Vec::new();
    for n in 0..6 {
        attackers.push(fleet[0].login(&fleet[0].register(&format!("attacker-{n}")).await).await);
    }
    for n in 0..5 {
        fleet[0].register(&format!("user-{n}")).await;
    }
    let before = hashes(&fleet).await;
    let short = json!({ "current_password": PASSWORD, "new_password": "short" });
    for n in 0..54 {
        let call = fleet[0].post("/auth/password").session(&attackers[n % 6]).json(&short);
        call.send().await.expect_problem(422, "validation_failed");
    }
    assert!(hashes(&fleet).await - before < 0.5, "none was hashed");

    // With a new password that is acceptable, the attack costs hashes, but it has to wait for its turn.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood: Vec<_> = (0..54)
        .map(|n| {
            let (fleet, stop) = (std::sync::Arc::clone(&fleet), std::sync::Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let call = fleet[0].try_login(&format!("attacker-{}", n % 6), PASSWORD);
                    drop(call.header("x-forwarded-for", "198.51.100.7").try_send().await);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut refused = 0;
    for n in 0..PEOPLE {
        let answer = login_from(&fleet, 0, &format!("203.0.113.{n}"), &format!("user-{}", n % 5), PASSWORD).await;
        refused += u32::from(answer.status != 200);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for client in flood {
        client.await.expect("no panic");
    }
    assert_eq!(refused, 0, "of {PEOPLE} people");
}

#[tokio::test]
async fn ipv6_networks_have_limits_of_their_own() {
    let fleet = behind_a_proxy().env("LOGIN_FAILURES_PER_ADDRESS", "2").start().await;
    fleet[0].register("ada").await;
    // Four /64 networks of one /56 use up its eight failures, so a fifth /64 is refused at once.
    for n in 0..8 {
        let ip = format!("2001:db8:1:1{}::1", n / 2);
        login_from(&fleet, n % 3, &ip, "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    login_from(&fleet, 0, "2001:db8:1:1f::1", "ada", PASSWORD).await.expect_problem(429, "throttled");
    login_from(&fleet, 0, "2001:db8:1:200::1", "ada", PASSWORD).await.expect(200);
    // The same holds for a /48, which has 32.
    for n in 0..24 {
        let ip = format!("2001:db8:1:{:x}::1", 0x200 + 0x100 * (n / 8) + n % 8 / 2);
        login_from(&fleet, n % 3, &ip, "ada", WRONG).await.expect_problem(401, "invalid_credentials");
    }
    login_from(&fleet, 0, "2001:db8:1:ff00::1", "ada", PASSWORD).await.expect_problem(429, "throttled");
    login_from(&fleet, 0, "2001:db8:2::1", "ada", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn registrations_are_limited_per_address() {
    let fleet = behind_a_proxy().env("REGISTRATIONS_PER_ADDRESS", "4").env("LOGIN_FAILURE_WINDOW", "1h").start().await;
    let register = |replica: usize, ip: &str, name: &str| {
        let body = json!({ "email": format!("{name}@example.org"), "password": PASSWORD });
        fleet[replica].post("/auth/register").header("x-forwarded-for", ip).json(&body).send()
    };
    for n in 0..3 {
        register(n, "203.0.113.7", &format!("user-{n}")).await.expect(201);
    }
    // An invalid form doesn't count. A registration for an address that already has an account does.
    let body = json!({ "email": "nonsense", "password": PASSWORD });
    for _ in 0..5 {
        let call = fleet[0].post("/auth/register").header("x-forwarded-for", "203.0.113.7").json(&body);
        call.send().await.expect_problem(422, "validation_failed");
    }
    register(0, "203.0.113.7", "user-0").await.expect_problem(409, "email_taken");
    for replica in 0..3 {
        for name in ["user-3", "user-0"] {
            let refused = register(replica, "203.0.113.7", name).await.expect_problem(429, "throttled");
            assert!((1..=3600).contains(&retry_after(&refused)), "{}", retry_after(&refused));
        }
    }
    register(0, "203.0.113.8", "user-3").await.expect(201);
    for n in 0..4 {
        register(n % 3, &format!("2001:db8::{n}"), &format!("six-{n}")).await.expect(201);
    }
    register(0, "2001:db8::ffff", "six-4").await.expect_problem(429, "throttled");
    register(0, "2001:db8:0:1::1", "six-4").await.expect(201);
    // Signing in has a limit of its own.
    login_from(&fleet, 0, "203.0.113.7", "user-0", PASSWORD).await.expect(200);
}

/// ASVS 5.0 16.5.3: without its counters, the server doesn't fall back to unlimited guessing.
#[tokio::test]
async fn asvs_16_5_3_without_redis_no_password_is_tried() {
    let mut fleet = Fleet::builder().redis_over_tcp().start().await;
    fleet[0].register("ada").await;
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
    fleet.redis.kill();
    let before = hashes(&fleet).await;
    for password in [PASSWORD, WRONG] {
        fleet[0].try_login("ada", password).send().await.expect_problem(503, "store_unavailable");
    }
    let body = json!({ "email": "eve@example.org", "password": PASSWORD });
    fleet[0].post("/auth/register").json(&body).send().await.expect_problem(503, "store_unavailable");
    assert!(hashes(&fleet).await - before < 0.5);
    fleet.redis.start().await;
    crate::fleet::within(crate::fleet::PATIENTLY, "logins work again", async || {
        fleet[0].try_login("ada", PASSWORD).send().await.status == 200
    })
    .await;
}

async fn store_hash(fleet: &Fleet, hash: &str) {
    let update = sqlx::query("UPDATE users SET password_hash = ?1").bind(hash);
    update.execute(&mut fleet.sql().await).await.expect("an update");
}

/// A replica that dies while it verifies a password doesn't keep its place for ever.
#[tokio::test]
async fn places_of_a_dead_replica_are_given_up() {
    let mut fleet = Fleet::builder().replicas(2).env("LOGIN_FAILURES_PER_ACCOUNT", "1").start().await;
    let ada = fleet[0].register("ada").await;
    let ours = fleet.query("SELECT password_hash FROM users").await.remove(0);
    // A hash that takes seconds, so that it is certainly in progress.
    let slow = format!("$argon2id$v=19$m=131072,t=16,p=1${}", ours.splitn(5, '$').nth(4).expect("salt and output"));
    store_hash(&fleet, &slow).await;
    let pending = format!("throttle:{{account:{}}}:pending", ada.id);
    let login = fleet[0].try_login("ada", PASSWORD);
    let login = tokio::spawn(login.try_send());
    crate::fleet::within(crate::fleet::PATIENTLY, "the attempt has its place", async || {
        fleet.redis.run::<i64>(&["ZCARD", &pending]) == 1
    })
    .await;
    fleet[0].kill();
    assert!(login.await.expect("no panic").is_err(), "nobody answered");
    let left: i64 = fleet.redis.run(&["PTTL", &pending]);
    assert!((1..=30_000).contains(&left), "{left} ms");
    store_hash(&fleet, &ours).await;
    // As if the time had passed.
    for pending in fleet.redis.keys("throttle:*pending") {
        let attempt = fleet.redis.run::<Vec<String>>(&["ZRANGE", &pending, "0", "-1"]).remove(0);
        fleet.redis.run::<i64>(&["ZADD", &pending, "XX", "1", &attempt]);
    }
    fleet[1].try_login("ada", PASSWORD).send().await.expect(200);
}
