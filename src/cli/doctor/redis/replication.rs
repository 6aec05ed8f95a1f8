//! Checks what a Redis with replicas needs: Sentinels, replicas, TLS.
use std::collections::BTreeSet;
use std::time::Instant;

use redis::{Script, Value};

use super::{Check, UNMEASURED, fail, ok, warn};
use crate::config::{RedisConfig, RedisTopology};
use crate::store::{RedisHandle, ServerInfo};

/// A replica that is further behind than this, in seconds, is reported.
const LATE: u64 = 3;

/// How connections are encrypted. `None` if they aren't.
pub(super) fn tls(config: &RedisConfig) -> Option<Check> {
    let url = config.url.as_ref().filter(|url| url.tls)?;
    let authorities =
        config.ca_file.as_ref().map_or("those that this system trusts".to_owned(), |path| path.display().to_string());
    let own = if config.cert_file.is_some() { "with" } else { "without" };
    let sentinels = if url.has_sentinels() { ", Sentinels included" } else { "" };
    Some(ok("redis.tls", format!("yes{sentinels}; authorities: {authorities}; {own} a certificate of this client")))
}

/// Checks that the Sentinels answer and agree. `None` without Sentinels.
pub(super) async fn sentinels(redis: &RedisHandle) -> Option<Check> {
    const NAME: &str = "redis.sentinels";
    let answers = redis.sentinels().await;
    let count = answers.len();
    let mut primaries = BTreeSet::new();
    let mut silent = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(primary) => drop(primaries.insert(primary)),
            Err(error) => silent.push(format!("{node}: {error}")),
        }
    }
    Some(match count {
        0 => return None,
        _ if silent.len() == count => {
            fail(NAME, silent.join("; "), "no Sentinel answers: check REDIS_URL and the network")
        }
        _ if !silent.is_empty() => warn(
            NAME,
            format!("{} of {count} don't answer: {}", silent.len(), silent.join("; ")),
            "a failover needs a majority of them",
        ),
        _ if primaries.len() > 1 => warn(
            NAME,
            format!("they name different primaries: {}", primaries.into_iter().collect::<Vec<_>>().join(", ")),
            "a failover is under way, or one of them is cut off",
        ),
        1 | 2 => warn(NAME, format!("{count}, all agree"), "run three: with fewer, the loss of one leaves no majority"),
        _ => ok(NAME, format!("{count}, all agree")),
    })
}

/// Whether a primary has the replicas that revocations wait for. `least` is its `min-replicas-to-write`.
pub(super) fn replicas(config: &RedisConfig, info: &ServerInfo, least: Option<&str>) -> Check {
    const NAME: &str = "redis.replicas";
    let wanted = u64::from(config.revocation_replicas);
    let Some(online) = info.replicas() else {
        return warn(NAME, "unknown: INFO is forbidden", "make sure that each primary has its replicas");
    };
    let lag = (0..online).filter_map(|number| info.get(&format!("slave{number}"))?.rsplit_once("lag=")?.1.parse().ok());
    let lag: u64 = lag.max().unwrap_or(0);
    let found = format!("{online} online, {lag} s behind at most; revocations wait for {wanted}");
    let is_cluster = config.url.as_ref().is_some_and(|url| matches!(url.topology, RedisTopology::Cluster(_)));
    if online < wanted {
        fail(NAME, found, "every revocation is answered 503: start the replicas, or lower REDIS_REVOCATION_REPLICAS")
    } else if online == wanted {
        warn(NAME, found, "the loss of one of them stops revocations: run one more than REDIS_REVOCATION_REPLICAS")
    } else if lag > LATE {
        warn(NAME, found, "check the network between primary and replicas, and their disks")
    } else if least == Some("0") && !is_cluster {
        warn(
            NAME,
            format!("{found}; min-replicas-to-write is 0"),
            "set it to 1: a primary that is cut off lets in sessions that have ended (deploy/redis/replicated.conf)",
        )
    } else {
        ok(NAME, found)
    }
}

/// Whether a revocation would be confirmed.
pub(super) async fn confirmation(redis: &RedisHandle) -> Check {
    const NAME: &str = "redis.confirmation";
    const ADVICE: &str =
        "every revocation is answered 503: check the replicas, and that Redis' ACL allows this user WAIT";
    let script = Script::new("return redis.call('SET', KEYS[1], 1, 'PX', 1000)");
    let begin = Instant::now();
    match redis.confirmed::<Value>(&UNMEASURED, &script.key("user:{doctor}:confirm")).await {
        Ok((_, Ok(()))) => ok(NAME, format!("replicas confirmed a write within {} ms", begin.elapsed().as_millis())),
        Ok((_, Err(error))) | Err(error) => fail(NAME, error.to_string(), ADVICE),
    }
}
