//! Password hashing in the whole server: it is bounded, refuses excess work at once, and doesn't delay session checks.
use std::time::Duration;

use futures::future::join_all;

use crate::fleet::{Fleet, PASSWORD, PATIENTLY, within};

#[tokio::test]
async fn passwords_are_hashed_as_promised() {
    let mut fleet = Fleet::builder().full_hashing().start().await;
    fleet[0].register("ada").await;
    let stored = async |fleet: &Fleet| fleet.query("SELECT password_hash FROM users").await.remove(0);
    let first = stored(&fleet).await;
    assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
    assert_eq!(stored(&fleet).await, first, "nothing to upgrade");

    // With other parameters, the next login upgrades the hash; one that fails doesn't.
    fleet[0].restart(&[("ARGON2_MEMORY", "16MiB"), ("ARGON2_ITERATIONS", "3")]).await;
    fleet[0].try_login("ada", "a wrong password").send().await.expect(401);
    assert_eq!(stored(&fleet).await, first);
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
    let second = stored(&fleet).await;
    assert!(second.starts_with("$argon2id$v=19$m=16384,t=3,p=1$"), "{second}");
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
}

/// Not only in the unit test of the gate, because the server has another allocator.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_login_took_of_memory_goes_back() {
    let fleet = Fleet::builder().env("ARGON2_MEMORY", "64MiB").start().await;
    let mebibytes = async || fleet[0].metric("process_resident_memory_bytes", &[]).await / f64::from(1 << 20);
    let idle = mebibytes().await;
    let ada = fleet[0].register("ada").await;
    fleet[0].login(&ada).await;
    assert!(mebibytes().await > idle + 60.0, "it is kept for the next login");
    // It takes no request to give it back.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = mebibytes().await;
    assert!(after < idle + 32.0, "{idle} MiB before, {after} after");
}

/// ASVS 5.0 15.2.2.
#[tokio::test]
async fn a_storm_of_logins_is_shed_and_hurts_nobody() {
    let fleet = Fleet::builder().full_hashing().env("HASH_CONCURRENCY", "1").env("HASH_QUEUE", "1").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let session = fleet[0].login(&ada).await;
    let passwords = [(&ada, PASSWORD, 200), (&eve, "a wrong password", 401)];
    let storm = async {
        let mut statuses = Vec::new();
        // Half of the attempts at eve's account are wrong, but stay below its limit.
        for _ in 0..2 {
            let logins = (0..8).flat_map(|_| passwords).map(async |(user, password, right)| {
                let answer = fleet[0].try_login(&user.email, password).send().await;
                if answer.status == 503 {
                    return answer.expect_problem(503, "overloaded").status;
                }
                answer.expect(right).status
            });
            statuses.extend(join_all(logins).await);
            fleet[0].try_login("eve", PASSWORD).send().await.expect(200);
        }
        statuses
    };
    let checks = async {
        for _ in 0..50 {
            assert_eq!(fleet[0].check(&session).await, 200);
        }
    };
    let (statuses, ()) = tokio::join!(storm, checks);
    let shed = statuses.iter().filter(|status| **status == 503).count();
    assert!(shed > 0 && shed < statuses.len(), "{statuses:?}");
    assert!(fleet[0].count("authfleet_hash_shed_total", &[]).await > 0);
    assert_eq!(fleet[0].count("authfleet_hash_queued", &[]).await, 0);
    fleet[0].login(&eve).await;
}

/// A client that hangs up frees its place in the queue, but not while its password is being hashed.
#[tokio::test]
async fn clients_that_leave_during_a_login_leave_nothing_behind() {
    let fleet = Fleet::builder().full_hashing().env("HASH_CONCURRENCY", "1").env("HASH_QUEUE", "2").start().await;
    let ada = fleet[0].register("ada").await;
    let body = format!(r#"{{"email":"{}","password":"{PASSWORD}"}}"#, ada.email);
    let head = "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length";
    for _ in 0..60 {
        let mut raw = fleet[0].raw().await;
        assert!(raw.write(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    within(PATIENTLY, "nothing is in flight", async || {
        fleet[0].count("authfleet_http_requests_in_flight", &[]).await == 0
            && fleet[0].count("authfleet_hash_queued", &[]).await == 0
    })
    .await;
    // One hash may still be in progress, but the whole queue is free each time.
    for _ in 0..3 {
        let logins = (0..2).map(|_| fleet[0].try_login("ada", PASSWORD).send());
        for answer in join_all(logins).await {
            answer.expect(200);
        }
    }
}

/// Replicas in containers leave one CPU to everything else.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn hashing_leaves_a_cpu_to_others_if_it_is_told_to() {
    use rustix::thread::{CpuSet, sched_getaffinity};

    let all = sched_getaffinity(None).expect("the CPUs of this test");
    let mut rest = all;
    if all.count() > 1 {
        rest.unset((0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("a CPU"));
    }
    let mut fleet = Fleet::builder().env("HASH_CONCURRENCY", "2").start().await;
    for (reserve, for_hashing) in [("false", all), ("true", rest)] {
        fleet[0].restart(&[("HASH_RESERVE_CPU", reserve)]).await;
        // Each hashing thread does this itself when it begins.
        within(PATIENTLY, reserve, async || {
            let (hashing, others): (Vec<_>, Vec<_>) =
                fleet[0].threads().into_iter().partition(|(name, _)| name.starts_with("hash-"));
            assert_eq!(hashing.len(), 2, "{hashing:?}");
            assert!(others.iter().all(|(_, cpus)| *cpus == all), "{others:?}");
            hashing.iter().all(|(_, cpus)| *cpus == for_hashing)
        })
        .await;
    }
}
