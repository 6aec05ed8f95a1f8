//! Checks Redis: whether it can be reached, keeps what it is given, and lets the server do its work.
mod replication;

use std::time::{Duration, Instant};

use redis::{Cmd, Script, Value, cmd};

use super::{Check, Status, fail, ok, warn};
use crate::clock::Clock;
use crate::config::{RedisConfig, RedisTopology};
use crate::store::{Operation, RedisHandle, ServerInfo, Shard};

/// `ZRANGE … REV`, which lists sessions, is the newest of the commands in use.
const OLDEST: (u32, u32) = (7, 0);
/// A slower `PING` is reported, because every session check takes at least as long.
const SLOW_PING: Duration = Duration::from_millis(5);
/// Metrics are not needed, since this process exposes none.
static UNMEASURED: Operation = Operation::new("doctor", || (metrics::Histogram::noop(), metrics::Counter::noop()));
const UNREACHABLE: &str =
    "every request with a session is answered 503 until Redis answers: check REDIS_URL, the network and the password";
/// How long the probe's keys live if they can't be removed.
const PROBE_SECONDS: u32 = 10;

/// A check of one server. It takes the server's `INFO`, its `appendfsync` and its `maxmemory-policy`.
type Examination<'a> = dyn Fn(&ServerInfo, Option<&str>, Option<&str>) -> Check + 'a;

pub(super) async fn examine(config: &RedisConfig) -> Vec<Check> {
    let redis = match RedisHandle::new(config) {
        Ok(Some(redis)) => redis,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![fail("redis", error.to_string(), "check the file that the message names")],
    };
    let shards = match redis.shards().await {
        Ok(shards) => shards,
        Err(error) => return vec![fail("redis", error.to_string(), UNREACHABLE)],
    };
    let mut found = Vec::new();
    for shard in &shards {
        if let Err(error) = redis.command_at::<Value>(shard, &UNMEASURED, &cmd("PING")).await {
            return vec![fail("redis", format!("{shard}: {error}"), UNREACHABLE)];
        }
        // Managed services that forbid `CONFIG` allow `INFO`.
        let info = redis.info(shard).await.unwrap_or_default();
        let appendfsync = setting(&redis, shard, "appendfsync").await;
        let maxmemory_policy = match info.get("maxmemory_policy") {
            Some(policy) => Some(policy.to_owned()),
            None => setting(&redis, shard, "maxmemory-policy").await,
        };
        found.push((shard, info, appendfsync, maxmemory_policy));
    }
    let each = |check: &Examination<'_>| {
        let checks = found.iter().map(|(shard, info, appendfsync, policy)| {
            (shard.to_string(), check(info, appendfsync.as_deref(), policy.as_deref()))
        });
        worst(checks.collect())
    };
    let mut checks = vec![
        ping(&redis, &shards).await,
        each(&|info, _, _| version(info)),
        each(&|info, _, _| role(info)),
        cluster(config, shards.len(), found.first().map(|(_, info, ..)| info)),
        each(&|info, _, policy| eviction(info, policy)),
        each(&|info, appendfsync, _| persistence(info, appendfsync)),
        clock(&redis).await,
        permissions(&redis).await,
    ];
    checks.extend(replication::tls(config));
    checks.extend(replication::sentinels(&redis).await);
    if config.revocation_replicas > 0 {
        let mut replicas = Vec::new();
        for (shard, info, ..) in &found {
            let least = setting(&redis, shard, "min-replicas-to-write").await;
            replicas.push((shard.to_string(), replication::replicas(config, info, least.as_deref())));
        }
        checks.push(worst(replicas));
        checks.push(replication::confirmation(&redis).await);
    }
    checks
}

/// Reduces the results of one check at several servers to the first of the worst, with the server's name.
fn worst(checks: Vec<(String, Check)>) -> Check {
    let count = checks.len();
    let (name, mut check) =
        checks.into_iter().reduce(|a, b| if b.1.status > a.1.status { b } else { a }).expect("a server");
    if count > 1 {
        check.found = match check.status {
            Status::Ok => format!("{} shards; {name}: {}", count, check.found),
            _ => format!("{name}: {}", check.found),
        };
    }
    check
}

/// A value of `CONFIG GET`. `None` if the command is forbidden.
async fn setting(redis: &RedisHandle, shard: &Shard, name: &str) -> Option<String> {
    let question = cmd("CONFIG").arg("GET").arg(name).take();
    let (_, value): (String, String) = redis.command_at(shard, &UNMEASURED, &question).await.ok()?;
    Some(value)
}

/// Checks how long `PING` takes: the median of the slowest server.
async fn ping(redis: &RedisHandle, shards: &[Shard]) -> Check {
    const NAME: &str = "redis.ping";
    let mut median = Duration::ZERO;
    for shard in shards {
        let mut times = Vec::new();
        for _ in 0..5 {
            let begin = Instant::now();
            if let Err(error) = redis.command_at::<Value>(shard, &UNMEASURED, &cmd("PING")).await {
                return fail(NAME, error.to_string(), "the connection is not stable");
            }
            times.push(begin.elapsed());
        }
        times.sort();
        median = median.max(times[2]);
    }
    let found = format!("{:.2} ms", median.as_secs_f64() * 1e3);
    if median <= SLOW_PING {
        ok(NAME, found)
    } else {
        warn(NAME, found, "each session check takes at least as long: move Redis closer to the servers")
    }
}

fn version(info: &ServerInfo) -> Check {
    const NAME: &str = "redis.version";
    // Valkey and others report the version of Redis that they are compatible with.
    let Some(version) = info.get("redis_version") else {
        return warn(NAME, "unknown: INFO is forbidden", "make sure that it is 7.0 or newer, or allow this user INFO");
    };
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let parsed = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = match (info.get("server_name"), info.get("valkey_version")) {
        (Some("valkey"), Some(valkey)) => format!("Valkey {valkey}, compatible with Redis {version}"),
        _ => version.to_owned(),
    };
    if parsed >= OLDEST {
        ok(NAME, found)
    } else {
        fail(NAME, found, "7.0 or newer is needed: a full Redis must let sessions be ended (scripts with allow-oom)")
    }
}

fn role(info: &ServerInfo) -> Check {
    const NAME: &str = "redis.role";
    match info.get("role") {
        Some("master") => match info.number("connected_slaves") {
            Some(replicas @ 1..) => ok(NAME, format!("primary with {replicas} replicas")),
            _ => ok(NAME, "primary, alone"),
        },
        Some(role) => {
            let primary = info.get("master_host").map(|host| format!(" of {host}")).unwrap_or_default();
            fail(
                NAME,
                format!("{role}{primary}: it takes no writes"),
                "REDIS_URL must lead to the primary; redis-sentinel:// finds it",
            )
        }
        None => warn(NAME, "unknown: INFO is forbidden", "make sure that REDIS_URL leads to a primary"),
    }
}

fn cluster(config: &RedisConfig, shards: usize, info: Option<&ServerInfo>) -> Check {
    const NAME: &str = "redis.cluster";
    let is_meant = config.url.as_ref().is_some_and(|url| matches!(url.topology, RedisTopology::Cluster(_)));
    let is_one = info.and_then(|info| info.get("cluster_enabled")).map(|enabled| enabled == "1");
    match (is_meant, is_one) {
        (true, _) => ok(NAME, format!("yes, {shards} shards")),
        (false, Some(false)) => ok(NAME, "no, one Redis for all sessions"),
        (false, None) => ok(NAME, "unknown: INFO is forbidden"),
        (false, Some(true)) => fail(
            NAME,
            "yes, but REDIS_URL names one of its servers, which has only a part of the sessions",
            "name the cluster: redis-cluster://host:6379,host:6379",
        ),
    }
}

fn eviction(info: &ServerInfo, policy: Option<&str>) -> Check {
    const NAME: &str = "redis.eviction";
    const ADVICE: &str = "set maxmemory-policy noeviction: an evicted session is a logout, and an evicted fence lets a \
                          late login through";
    let limit = info.number("maxmemory");
    let used = info.number("used_memory").unwrap_or(0);
    match (policy, limit) {
        (None, _) => {
            warn(NAME, "unknown: INFO and CONFIG are forbidden", "make sure that maxmemory-policy is noeviction")
        }
        (Some("noeviction"), Some(limit @ 1..)) => {
            let found = format!("noeviction, {} of {} MiB used", used >> 20, limit >> 20);
            // Less than nine tenths, in integers.
            if used / 9 < limit / 10 {
                ok(NAME, found)
            } else {
                warn(NAME, found, "logins are refused when it's full: raise maxmemory")
            }
        }
        (Some("noeviction"), _) => ok(NAME, format!("noeviction, {} MiB used, no limit", used >> 20)),
        (Some(policy), Some(0)) => {
            warn(NAME, format!("maxmemory-policy is {policy}, without effect as long as maxmemory is 0"), ADVICE)
        }
        (Some(policy), _) => fail(NAME, format!("maxmemory-policy is {policy}"), ADVICE),
    }
}

fn persistence(info: &ServerInfo, appendfsync: Option<&str>) -> Check {
    const NAME: &str = "redis.persistence";
    let failed = |what: &str| {
        fail(
            NAME,
            format!("the last write of {what} failed"),
            "look for a full disk; a restart loses what was written since",
        )
    };
    match info.get("aof_enabled") {
        Some("1") if info.get("aof_last_write_status") == Some("err") => failed("the append-only file"),
        Some("1") => ok(
            NAME,
            match appendfsync {
                Some("always") => {
                    "append-only file, appendfsync always: nothing is lost, and each session check waits for the \
                               disk"
                }
                Some("everysec") => {
                    "append-only file, appendfsync everysec: a crash can lose the last second or two, a logout \
                                 made then is undone"
                }
                Some("no") => {
                    "append-only file, appendfsync no: a crash can lose half a minute, logouts made then are undone"
                }
                _ => "append-only file, appendfsync unknown: CONFIG is forbidden",
            },
        ),
        Some(_) if info.get("rdb_last_bgsave_status") == Some("err") => failed("a snapshot"),
        Some(_) => warn(
            NAME,
            "no append-only file: a restart brings back the sessions of the last snapshot, or none",
            "set appendonly yes: otherwise a crash logs users out, and can undo logouts",
        ),
        None => warn(NAME, "unknown: INFO is forbidden", "make sure that appendonly is yes"),
    }
}

async fn clock(redis: &RedisHandle) -> Check {
    const NAME: &str = "redis.clock";
    let skew = match redis.clock_skew(&Clock::system()).await {
        Ok(seconds) => seconds,
        Err(error) => return fail(NAME, error.to_string(), "the throttle asks Redis for the time: allow TIME"),
    };
    let found = format!("{:.0} ms {} this host", (skew * 1e3).abs(), if skew > 0.0 { "behind" } else { "ahead of" });
    match skew.abs() {
        ..=1.0 => ok(NAME, found),
        ..=30.0 => warn(NAME, found, "synchronise the clocks of both hosts (chrony, systemd-timesyncd)"),
        _ => fail(
            NAME,
            found,
            "synchronise the clocks: absolute limits follow this host's clock, idle limits that of Redis",
        ),
    }
}

/// Checks that this user may run each command that the server runs, on keys made for the check.
async fn permissions(redis: &RedisHandle) -> Check {
    const NAME: &str = "redis.permissions";
    let probe = format!("{:016x}", fastrand::u64(..));
    let session = format!("session:{{doctor}}:{probe}");
    let user = format!("user:{{doctor}}:{probe}");
    let list = format!("user:{{doctor}}:list:{probe}");
    let code = format!("user:{{doctor}}:code:{probe}");
    let throttle = format!("throttle:{{doctor}}:{probe}");
    let on = |name: &str, key: &str, rest: &[&str]| {
        let mut command = cmd(name);
        command.arg(key).arg(rest);
        command
    };
    let script = |name: &str, body: &str| {
        let mut command = cmd(name);
        command.arg(body).arg(1).arg(&session);
        command
    };
    let life = PROBE_SECONDS * 1000;
    let ttl = life.to_string();
    let body = "return redis.call('PTTL', KEYS[1])";
    let mut load = cmd("SCRIPT");
    load.arg("LOAD").arg(body);
    let mut scan = cmd("SCAN");
    scan.arg(0).arg("MATCH").arg(&session).arg("COUNT").arg(1);

    let steps: Vec<(&str, Cmd)> = vec![
        ("HSET session:*", on("HSET", &session, &["user_id", "doctor"])),
        ("PEXPIRE session:*", on("PEXPIRE", &session, &[&ttl])),
        ("HMGET session:*", on("HMGET", &session, &["user_id"])),
        ("HGETALL session:*", on("HGETALL", &session, &[])),
        ("PTTL session:*", on("PTTL", &session, &[])),
        ("EXISTS session:*", on("EXISTS", &session, &[])),
        ("EVAL", script("EVAL", body)),
        ("SCRIPT LOAD", load),
        ("EVALSHA", script("EVALSHA", Script::new(body).get_hash())),
        ("ZADD user:*", on("ZADD", &user, &["1", "probe"])),
        ("PEXPIRE user:*", on("PEXPIRE", &user, &[&ttl])),
        ("ZCARD user:*", on("ZCARD", &user, &[])),
        ("ZRANGE REV user:*", on("ZRANGE", &user, &["0", "-1", "REV"])),
        ("ZREMRANGEBYSCORE user:*", on("ZREMRANGEBYSCORE", &user, &["-inf", "0"])),
        ("ZREM user:*", on("ZREM", &user, &["probe"])),
        ("RPUSH user:*", on("RPUSH", &list, &["probe"])),
        ("LRANGE user:*", on("LRANGE", &list, &["0", "-1"])),
        ("LREM user:*", on("LREM", &list, &["1", "probe"])),
        ("SET user:*", on("SET", &user, &["1", "PX", &ttl])),
        ("GET user:*", on("GET", &user, &[])),
        ("HSET user:*", on("HSET", &code, &["session_id", "doctor"])),
        ("PEXPIRE user:*", on("PEXPIRE", &code, &[&ttl])),
        ("HMGET user:*", on("HMGET", &code, &["session_id"])),
        ("HGET session:*", on("HGET", &session, &["user_id"])),
        ("DEL user:*", on("DEL", &code, &[])),
        ("INCR throttle:*", on("INCR", &throttle, &[])),
        ("PEXPIRE throttle:*", on("PEXPIRE", &throttle, &[&ttl])),
        ("SCAN (session revoke, session inspect)", scan),
        ("DEL session:*", on("DEL", &session, &[])),
        ("DEL user:*", on("DEL", &user, &[])),
        ("DEL throttle:*", on("DEL", &throttle, &[])),
    ];
    let count = steps.len();
    let mut refused = Vec::new();
    for (name, command) in steps {
        if let Err(error) = redis.command::<Value>(&UNMEASURED, &command).await {
            refused.push((name, error));
        }
    }
    match refused.as_slice() {
        [] => ok(NAME, format!("all {count} commands, on session:*, user:* and throttle:*")),
        [(_, error), ..] => {
            let names: Vec<_> = refused.iter().map(|(name, _)| *name).collect();
            let found = format!("refused: {}; {error}", names.join(", "));
            fail(NAME, found, "check Redis' ACL for this user, and whether its disk is full")
        }
    }
}
