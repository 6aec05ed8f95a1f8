use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join_all, poll_immediate};

use super::*;

/// Counts the jobs under way, and holds them there while a test keeps `hold` locked.
#[derive(Debug, Default)]
pub(super) struct Probe {
    running: AtomicUsize,
    most: AtomicUsize,
    begun: AtomicUsize,
    hold: tokio::sync::Mutex<()>,
}

pub(super) struct Running<'a>(&'a Probe);

impl Probe {
    pub(super) fn enter(&self) -> Running<'_> {
        let running = Running(self);
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        drop(self.hold.blocking_lock());
        running
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

const SMALL: HashingConfig =
    HashingConfig { memory_kib: 64, iterations: 2, parallelism: 1, concurrency: 2, reserve_cpu: false, queue: 8 };
const SMALL_WORK: &str = "m=64,t=2,p=1";
const PASSWORD: &str = "correct horse battery staple";

fn gate(config: HashingConfig) -> Arc<HashGate> {
    HashGate::start(&config).unwrap()
}

fn small() -> Arc<HashGate> {
    gate(SMALL)
}

async fn verify(gate: &HashGate, password: &str, stored: &str) -> Verdict {
    gate.verify(password.into(), Some(stored.into()), Origin::default()).await.unwrap()
}

fn is_match(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Match { .. })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Puts a job into the queue and gives back the request that waits for it.
async fn queued<T>(request: impl Future<Output = T>) -> std::pin::Pin<Box<impl Future<Output = T>>> {
    let mut request = Box::pin(request);
    assert!(poll_immediate(&mut request).await.is_none(), "answered at once");
    request
}

#[tokio::test]
async fn a_hash_is_argon2id_in_phc_format_with_the_configured_parameters_and_a_salt_of_its_own() {
    let gate = small();
    let first = gate.hash(PASSWORD.into(), Origin::default()).await.unwrap();
    let second = gate.hash(PASSWORD.into(), Origin::default()).await.unwrap();
    let fields: Vec<_> = first.expose_secret().split('$').collect();
    assert_eq!(fields[..4], ["", "argon2id", "v=19", SMALL_WORK]);
    assert_eq!([fields[4].len(), fields[5].len()], [22, 43], "16 bytes of salt, 32 of output, in base64");
    assert_ne!(first.expose_secret(), second.expose_secret());
    let verdict = verify(&gate, PASSWORD, first.expose_secret()).await;
    assert!(matches!(verdict, Verdict::Match { upgraded: None }));
    assert!(!is_match(&verify(&gate, "Correct horse battery staple", first.expose_secret()).await));
}

/// Made with the reference implementation of Argon2 (its Python binding) and with bcrypt of OpenBSD's lineage.
const FOREIGN: &[&str] = &[
    "$argon2id$v=19$m=64,t=3,p=4$cmVmZXJlbmNlLXNhbHQxNg$77LwlaUPbiXfHZZprqNoEI4W9sh72gpLnaUDE9NJ3Vg",
    "$argon2i$v=19$m=64,t=2,p=1$cmVmZXJlbmNlLXNhbHQxNg$jHZ1xtCzJkkNKDZB4a+/B2PdenBHkfHy",
    "$argon2d$v=19$m=64,t=2,p=1$cmVmZXJlbmNlLXNhbHQxNg$+PZ1AxS/xkI/jrNy2K1DnZg8sBkkYqenetO4xYePiro",
    "$argon2id$v=16$m=64,t=2,p=1$cmVmZXJlbmNlLXNhbHQxNg$F7/s+QnmwS2w7mBH2Q7ot78Dhkhy2FKpmcH+RaafFPY",
    "$2a$04$5n3K9nqdys3rlqnzA6JHCuLR5WY7Od/JIhKZKFBha4Gw/2t.dyzqS",
    "$2b$04$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW",
    "$2y$04$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW",
];

#[tokio::test]
async fn hashes_with_other_parameters_and_bcrypt_hashes_verify_and_are_upgraded() {
    let gate = small();
    for stored in FOREIGN {
        assert!(!is_match(&verify(&gate, "correct horse battery stapl", stored).await), "{stored}");
        let Verdict::Match { upgraded: Some(upgraded) } = verify(&gate, PASSWORD, stored).await else {
            panic!("{stored} neither verified nor upgraded")
        };
        let prefix = format!("$argon2id$v=19${SMALL_WORK}$");
        assert!(upgraded.expose_secret().starts_with(&prefix), "{stored}");
        let again = verify(&gate, PASSWORD, upgraded.expose_secret()).await;
        assert!(matches!(again, Verdict::Match { upgraded: None }), "{stored}");
    }
}

#[tokio::test]
async fn stronger_parameters_than_configured_are_honoured_too_with_memory_of_their_own() {
    let strong = gate(HashingConfig { memory_kib: 4096, iterations: 3, ..SMALL });
    let stored = strong.hash(PASSWORD.into(), Origin::default()).await.unwrap();
    let small = small();
    assert!(is_match(&verify(&small, PASSWORD, stored.expose_secret()).await));
    assert!(!is_match(&verify(&small, "wrong", stored.expose_secret()).await));
}

/// A password whose text isn't in NFKC: a ligature, and an angstrom sign and an umlaut composed of two characters each.
const TYPED: &str = "\u{fb01}ne-A\u{30a}ngstro\u{308}m";

#[tokio::test]
async fn nist_3_1_1_2_a_password_verifies_however_it_is_composed() {
    let gate = small();
    let stored = gate.hash(TYPED.into(), Origin::default()).await.unwrap();
    for typed in [TYPED, "fine-\u{c5}ngstr\u{f6}m"] {
        assert!(is_match(&verify(&gate, typed, stored.expose_secret()).await));
    }
}

#[tokio::test]
async fn bcrypt_compares_the_bytes_as_typed_and_the_upgrade_normalises_them() {
    let gate = small();
    let stored = "$2b$04$dCXUtSZdu3ea1QDo2sj6oOFNUSExDtNmy0Tf5zWbSplP5yhYcUo9i";
    assert!(!is_match(&verify(&gate, "fine-\u{c5}ngstr\u{f6}m", stored).await), "the predecessor refused it as well");
    let Verdict::Match { upgraded: Some(upgraded) } = verify(&gate, TYPED, stored).await else { panic!("refused") };
    assert!(is_match(&verify(&gate, "fine-\u{c5}ngstr\u{f6}m", upgraded.expose_secret()).await));
}

#[tokio::test]
async fn bcrypt_accepts_what_the_predecessor_accepted_beyond_72_bytes_but_never_makes_it_the_password() {
    let gate = small();
    let stored = "$2b$04$dCXUtSZdu3ea1QDo2sj6oOnRar8drShyATcSaUzrxk3Zv19nFH7p6";
    for length in [72, 73, 100, 1000] {
        let verdict = verify(&gate, &"x".repeat(length), stored).await;
        assert!(matches!(verdict, Verdict::Match { upgraded: None }), "{length}");
    }
    assert!(!is_match(&verify(&gate, &"x".repeat(71), stored).await));
}

#[tokio::test]
async fn a_nul_ends_no_password() {
    let gate = small();
    let bcrypt = "$2b$04$dCXUtSZdu3ea1QDo2sj6oOGRB0DDVptlGc3ndhK0JxncBLp5REj8S";
    let argon2 = gate.hash("nul\0 in the middle".into(), Origin::default()).await.unwrap();
    for stored in [bcrypt, argon2.expose_secret()] {
        assert!(is_match(&verify(&gate, "nul\0 in the middle", stored).await));
        assert!(!is_match(&verify(&gate, "nul", stored).await));
        assert!(!is_match(&verify(&gate, "nul\0 in the muddle", stored).await));
    }
}

#[tokio::test]
async fn a_stored_hash_that_is_malformed_or_asks_too_much_costs_one_hash_and_never_matches() {
    let salt_and_output = "cmVmZXJlbmNlLXNhbHQxNg$aVTKazS7FK8PNV3PHmGA2Z72SBGZXQcpUqJGBmjZm8E";
    let gate = small();
    for stored in [
        format!("$argon2id$v=19$m=4194304,t=2,p=1${salt_and_output}"),
        format!("$argon2id$v=19$m=262145,t=2,p=1${salt_and_output}"),
        format!("$argon2id$v=19$m=64,t=17,p=1${salt_and_output}"),
        format!("$argon2id$v=19$m=64,t=4294967295,p=1${salt_and_output}"),
        format!("$argon2id$v=19$m=262144,t=2,p=17${salt_and_output}"),
        format!("$argon2id$v=19$m=64,t=2,p=16777215${salt_and_output}"),
        format!("$argon2id$v=19$m=64,t=2,p=0${salt_and_output}"),
        format!("$argon2id$v=19$m=99999999999,t=2,p=1${salt_and_output}"),
        format!("$argon2id$v=42$m=64,t=2,p=1${salt_and_output}"),
        format!("$scrypt$ln=16,r=8,p=1${salt_and_output}"),
        "$argon2id$v=19$m=64,t=2,p=1$cmVmZXJlbmNlLXNhbHQxNg$AAAAAAAAAAAAAAAA".to_owned(),
        "$argon2id$v=19$m=64,t=2,p=1$c2FsdA$aVTKazS7FK8PNV3PHmGA2Z72SBGZXQcpUqJGBmjZm8E".to_owned(),
        "$argon2id$v=19$m=64,t=2,p=1$cmVmZXJlbmNlLXNhbHQxNg".to_owned(),
        "$2b$31$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW".to_owned(),
        "$2b$15$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW".to_owned(),
        "$2b$03$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW".to_owned(),
        "$2x$04$sqcv7qi8u/SBC/jui6mAu...3xDi1QzLWXUT8e8TQtus0JcpI8rwW".to_owned(),
        "$2b$04$too-short".to_owned(),
        PASSWORD.to_owned(),
        "$".to_owned(),
        String::new(),
    ] {
        gate.shared.scheme.computed.lock().clear();
        assert!(!is_match(&verify(&gate, PASSWORD, &stored).await), "{stored}");
        assert_eq!(*gate.shared.scheme.computed.lock(), [SMALL_WORK], "{stored}");
    }
}

#[tokio::test]
async fn asvs_6_3_8_an_unknown_user_costs_the_same_work_as_a_wrong_password() {
    let gate = small();
    let stored = gate.hash(PASSWORD.into(), Origin::default()).await.unwrap();
    let computed = || mem::take(&mut *gate.shared.scheme.computed.lock());
    computed();
    assert!(!is_match(&gate.verify("wrong".into(), Some(stored), Origin::default()).await.unwrap()));
    let wrong = computed();
    assert!(!is_match(&gate.verify("wrong".into(), None, Origin::default()).await.unwrap()));
    let unknown = computed();
    assert_eq!(wrong, [SMALL_WORK]);
    assert_eq!(unknown, wrong);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_admits_again_when_there_is_room() {
    let gate = gate(HashingConfig { concurrency: 2, queue: 3, ..SMALL });
    let hold = gate.shared.probe.hold.lock().await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(queued(gate.hash(PASSWORD.into(), Origin::default())).await);
    }
    until("both threads are at work", || gate.shared.probe.running.load(Ordering::SeqCst) == 2).await;
    for _ in 0..3 {
        waiting.push(queued(gate.hash(PASSWORD.into(), Origin::default())).await);
    }
    let refused =
        poll_immediate(Box::pin(gate.hash(PASSWORD.into(), Origin::default()))).await.expect("an answer at once");
    let HashError::Overloaded { retry_after } = refused.unwrap_err() else { panic!("not overloaded") };
    assert_eq!(retry_after, Duration::from_secs(1), "five tiny hashes take less");
    drop(hold);
    for hash in join_all(waiting).await {
        assert!(hash.is_ok());
    }
    assert!(gate.hash(PASSWORD.into(), Origin::default()).await.is_ok());
}

#[tokio::test]
async fn idle_threads_take_work_beyond_the_queue() {
    let gate = gate(HashingConfig { concurrency: 4, queue: 1, ..SMALL });
    until("all threads wait", || gate.shared.state.lock().idle == 4).await;
    let hashes = join_all((0..5).map(|_| gate.hash(PASSWORD.into(), Origin::default()))).await;
    assert!(hashes.iter().all(Result::is_ok), "four threads and one place");
}

#[test]
fn retry_after_is_the_time_of_the_backlog() {
    let gate = small();
    let mut state = gate.shared.state.lock();
    state.mean = 3.2;
    assert_eq!(state.backlog(2), Duration::from_secs(4), "what is under way");
    for _ in 0..6 {
        let work = Work::Hash { password: PASSWORD.into(), reply: oneshot::channel().0 };
        state.queue.push_back(Job {
            work,
            turn: 0,
            gone: CancellationToken::new(),
            queued: Instant::now(),
            waiting: Span::none(),
            request: Span::none(),
        });
    }
    assert_eq!(state.backlog(2), Duration::from_secs(13), "(6 + 2) / 2 * 3.2 s");
    state.mean = 0.02;
    assert_eq!(state.backlog(2), Duration::from_secs(1));
}

#[tokio::test]
async fn abandoned_jobs_are_not_hashed_and_keep_nobody_out() {
    let gate = gate(HashingConfig { concurrency: 1, queue: 2, ..SMALL });
    let hold = gate.shared.probe.hold.lock().await;
    let under_way = queued(gate.hash(PASSWORD.into(), Origin::default())).await;
    until("the thread is at work", || gate.shared.probe.running.load(Ordering::SeqCst) == 1).await;
    let abandoned = [
        queued(gate.hash(PASSWORD.into(), Origin::default())).await,
        queued(gate.hash(PASSWORD.into(), Origin::default())).await,
    ];
    drop(abandoned);
    let after = [
        queued(gate.hash(PASSWORD.into(), Origin::default())).await,
        queued(gate.hash(PASSWORD.into(), Origin::default())).await,
    ];
    assert!(
        matches!(gate.hash(PASSWORD.into(), Origin::default()).await, Err(HashError::Overloaded { .. })),
        "now it is really full"
    );
    drop(hold);
    assert!(under_way.await.is_ok());
    assert!(join_all(after).await.iter().all(Result::is_ok));
    assert_eq!(gate.shared.probe.begun.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_request_that_goes_away_neither_frees_its_thread_early_nor_leaks_it() {
    let gate = gate(HashingConfig { concurrency: 2, queue: 64, ..SMALL });
    for _ in 0..4 {
        until("all threads wait", || gate.shared.state.lock().idle == 2).await;
        let hold = gate.shared.probe.hold.lock().await;
        let under_way = [
            queued(gate.hash(PASSWORD.into(), Origin::default())).await,
            queued(gate.hash(PASSWORD.into(), Origin::default())).await,
        ];
        until("both threads are at work", || gate.shared.probe.running.load(Ordering::SeqCst) == 2).await;
        drop(under_way);
        let next = queued(gate.hash(PASSWORD.into(), Origin::default())).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(gate.shared.probe.running.load(Ordering::SeqCst), 2, "the work is still under way");
        assert_eq!(gate.shared.state.lock().queue.len(), 1, "nobody took its place");
        drop(hold);
        assert!(next.await.is_ok());
    }
    // A storm in which every other request goes away, some before their work begins, some after.
    let hold = gate.shared.probe.hold.lock().await;
    let mut storm = Vec::new();
    for _ in 0..60 {
        storm.push(queued(gate.hash(PASSWORD.into(), Origin::default())).await);
    }
    drop(hold);
    let mut index = 0;
    storm.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    assert!(join_all(storm).await.iter().all(Result::is_ok));
    assert_eq!(gate.shared.probe.most.load(Ordering::SeqCst), 2, "never more than HASH_CONCURRENCY");
    until("all threads wait again", || gate.shared.state.lock().idle == 2).await;
}

#[tokio::test]
async fn close_finishes_what_somebody_waits_for_and_admits_nothing_more() {
    let gate = gate(HashingConfig { concurrency: 1, ..SMALL });
    let hold = gate.shared.probe.hold.lock().await;
    let mut waiting = vec![queued(gate.hash(PASSWORD.into(), Origin::default())).await];
    until("the thread is at work", || gate.shared.probe.running.load(Ordering::SeqCst) == 1).await;
    waiting.push(queued(gate.hash(PASSWORD.into(), Origin::default())).await);
    drop(queued(gate.hash(PASSWORD.into(), Origin::default())).await);
    let close = queued(gate.close()).await;
    assert!(matches!(gate.hash(PASSWORD.into(), Origin::default()).await, Err(HashError::Closed)));
    assert!(matches!(gate.verify(PASSWORD.into(), None, Origin::default()).await, Err(HashError::Closed)));
    drop(hold);
    close.await;
    for request in waiting {
        assert!(poll_immediate(request).await.expect("answered before close returned").is_ok());
    }
    assert_eq!(gate.shared.probe.begun.load(Ordering::SeqCst), 2);
    assert_eq!(Arc::strong_count(&gate.shared), 1, "the threads have ended");
    gate.close().await;
}

#[test]
fn parameters_that_argon2_does_not_know_are_refused_at_start() {
    let error = HashGate::start(&HashingConfig { memory_kib: 8, parallelism: 4, ..SMALL }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn hashing_threads_run_at_a_lower_priority_than_the_rest() {
    fn nice_of(stat: &str) -> i32 {
        // proc(5): the fields after the name, which may hold spaces, begin with the third; nice is the 19th.
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    let gate = small();
    gate.hash(PASSWORD.into(), Origin::default()).await.unwrap();
    until("all threads wait", || gate.shared.state.lock().idle == SMALL.concurrency).await;
    let own = nice_of(&std::fs::read_to_string("/proc/thread-self/stat").unwrap());
    // Gates of other tests come and go meanwhile, so a thread may be gone before it's read, or not have begun.
    let lowered = || {
        let tasks = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let hashing = tasks.filter(|stat| stat.contains("(hash-"));
        hashing.filter(|stat| nice_of(stat) == (own + NICE).min(19)).count()
    };
    until("the threads of this gate are lowered", || lowered() >= SMALL.concurrency).await;
    assert_eq!(nice_of(&std::fs::read_to_string("/proc/thread-self/stat").unwrap()), own);
}

/// Memory is the whole process's, so this one is measured in a process of its own.
#[cfg(target_os = "linux")]
#[test]
fn memory_goes_back_to_the_system_when_hashing_stops() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "auth::password::gate::tests::measured_alone", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("1 passed"),
        "{output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "run by memory_goes_back_to_the_system_when_hashing_stops, in a process of its own"]
async fn measured_alone() {
    // Without the pages of the program's file: how many of those the kernel maps at a time is its own affair.
    fn anonymous_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    let gate = gate(HashingConfig { memory_kib: 19 * 1024, iterations: 1, concurrency: 2, queue: 64, ..SMALL });
    let before = anonymous_kib();
    for _round in 0..3 {
        let hashes = join_all((0..8).map(|_| gate.hash(PASSWORD.into(), Origin::default()))).await;
        assert!(hashes.iter().all(Result::is_ok));
        assert!(anonymous_kib() > before + 15 * 1024, "memory is kept between hashes that follow each other");
        // Half of one thread's memory. Threads' stacks are in `before` in part only, and huge pages make them 2 MiB
        // each.
        until("memory is back", || anonymous_kib() < before + 19 * 1024 / 2).await;
    }
}

/// One address with accounts of its own, however many it has in the queue, leaves room for others.
#[tokio::test]
async fn addresses_and_accounts_take_turns() {
    let gate = gate(HashingConfig { concurrency: 1, queue: 6, ..SMALL });
    let hold = gate.shared.probe.hold.lock().await;
    let under_way = queued(gate.hash(PASSWORD.into(), Origin::default())).await;
    until("one is under way", || gate.shared.probe.begun.load(Ordering::SeqCst) == 1).await;
    let from = |address: u64, account: u64| Origin { flows: [address, account], ..Origin::default() };
    // Six of one address, of three accounts.
    let mut flood = Vec::new();
    for n in 0..6 {
        flood.push(queued(gate.hash(PASSWORD.into(), from(1, 10 + n % 3))).await);
    }
    assert!(gate.hash(PASSWORD.into(), from(1, 99)).await.is_err(), "the queue is full, and it has the most of it");
    // Others come, and the last of the flood make room.
    let other = queued(gate.hash(PASSWORD.into(), from(2, 20))).await;
    let another = queued(gate.hash(PASSWORD.into(), from(3, 30))).await;
    assert!(gate.hash(PASSWORD.into(), from(2, 10)).await.is_err(), "nor by another address for the same account");
    drop(hold);
    under_way.await.unwrap();
    other.await.unwrap();
    another.await.unwrap();
    let ended = join_all(flood).await;
    let results: Vec<_> = ended.iter().map(Result::is_ok).collect();
    assert_eq!(results, [true, true, true, true, false, false]);
}

/// The client has gone, but the task that would record the outcome waits.
#[tokio::test]
async fn work_is_dropped_when_the_client_goes_before_it_begins() {
    let gate = gate(HashingConfig { concurrency: 1, ..SMALL });
    let hold = gate.shared.probe.hold.lock().await;
    let under_way = queued(gate.hash(PASSWORD.into(), Origin::default())).await;
    until("one is under way", || gate.shared.probe.begun.load(Ordering::SeqCst) == 1).await;
    let origin = Origin::default();
    let waiting = queued(gate.hash(PASSWORD.into(), origin.clone())).await;
    origin.gone.cancel();
    drop(hold);
    under_way.await.unwrap();
    assert!(matches!(waiting.await, Err(HashError::Abandoned)));
    assert_eq!(gate.shared.probe.begun.load(Ordering::SeqCst), 1);
}
