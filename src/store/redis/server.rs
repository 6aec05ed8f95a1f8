//! What a Redis server reports about itself.
use std::collections::HashMap;

use redis::cmd;

use super::{Operation, RedisHandle, Shard, operation};
use crate::clock::Clock;
use crate::store::StoreError;

static INFO_TRIP: Operation = operation!("info");
static TIME_TRIP: Operation = operation!("time");

/// What a server reports about itself. Managed services leave some of it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerState {
    /// Bytes in use.
    pub memory: Option<u64>,
    /// `maxmemory`; 0 for no limit.
    pub memory_limit: Option<u64>,
    /// Keys evicted since the server started.
    pub evicted_keys: Option<u64>,
    /// Whether the last writes to its disk went well: the append-only file, its last rewrite, the last snapshot.
    pub is_persistence_ok: Option<bool>,
    /// Replicas that are connected and in sync; with several primaries, the lowest of their numbers.
    pub replicas: Option<u64>,
}

/// A server's answer to `INFO`. Managed services leave some of it out.
#[derive(Debug, Default)]
pub(crate) struct ServerInfo(HashMap<String, String>);

impl ServerInfo {
    fn read(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field that is a whole number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// How many replicas are connected and receive what is written.
    pub(crate) fn replicas(&self) -> Option<u64> {
        let count = self.number("connected_slaves")?;
        let is_online = |number: &u64| {
            let line = self.get(&format!("slave{number}"));
            line.is_some_and(|line| line.split(',').any(|field| field == "state=online"))
        };
        Some((0..count).filter(is_online).count() as u64)
    }
}

impl RedisHandle {
    /// `clock` minus Redis's clock in seconds, exact to half a round trip. With several servers, the largest
    /// difference.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn clock_skew(&self, clock: &Clock) -> Result<f64, StoreError> {
        let mut largest = 0.0_f64;
        for shard in self.shards().await? {
            let before = clock.now_us();
            let (seconds, microseconds): (i64, i64) = self.command_at(&shard, &TIME_TRIP, &cmd("TIME")).await?;
            let after = clock.now_us();
            // It answered at some time between these two.
            let skew = i64::midpoint(before, after) - (seconds * 1_000_000 + microseconds);
            #[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
            let skew = skew as f64 / 1e6;
            if skew.abs() > largest.abs() {
                largest = skew;
            }
        }
        Ok(largest)
    }

    /// `INFO` of one primary, with its default sections.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn info(&self, shard: &Shard) -> Result<ServerInfo, StoreError> {
        let text: String = self.command_at(shard, &INFO_TRIP, &cmd("INFO")).await?;
        Ok(ServerInfo::read(&text))
    }

    /// Four sections of `INFO`, combined over all primaries.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn server_state(&self) -> Result<ServerState, StoreError> {
        let mut sections = redis::Pipeline::with_capacity(4);
        // One by one, because only Redis 7 and later accept several at once.
        for section in ["memory", "stats", "persistence", "replication"] {
            sections.cmd("INFO").arg(section);
        }
        let mut whole: Option<ServerState> = None;
        for shard in self.shards().await? {
            let mut text = String::new();
            for section in self.pipeline_at(&shard, &INFO_TRIP, &sections).await? {
                text.push_str(&redis::from_redis_value::<String>(section).map_err(redis::RedisError::from)?);
            }
            let state = ServerState::of(&ServerInfo::read(&text));
            whole = Some(whole.map_or(state, |whole| whole.and(state)));
        }
        Ok(whole.unwrap_or_default())
    }
}

impl ServerState {
    fn of(info: &ServerInfo) -> Self {
        let statuses = ["aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"];
        let mut statuses = statuses.iter().filter_map(|name| info.get(name)).peekable();
        Self {
            memory: info.number("used_memory"),
            memory_limit: info.number("maxmemory"),
            evicted_keys: info.number("evicted_keys"),
            is_persistence_ok: statuses.peek().is_some().then(|| statuses.all(|status| status == "ok")),
            replicas: info.replicas(),
        }
    }

    /// Combines two servers: the sum of what they use, and the worse of each sign of health.
    fn and(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
        Self {
            memory: sum(self.memory, other.memory),
            memory_limit: match (self.memory_limit, other.memory_limit) {
                // If one has no limit, the whole has none.
                (Some(0), Some(_)) | (Some(_), Some(0)) => Some(0),
                (one, other) => sum(one, other),
            },
            evicted_keys: sum(self.evicted_keys, other.evicted_keys),
            is_persistence_ok: self.is_persistence_ok.zip(other.is_persistence_ok).map(|(one, other)| one && other),
            replicas: self.replicas.zip(other.replicas).map(|(one, other)| one.min(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerInfo, ServerState};

    const ALL_WELL: &str = "# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\nmaxmemory:0\r\n# Stats\r\n\
                            evicted_keys:3\r\n# Persistence\r\nrdb_last_bgsave_status:ok\r\naof_enabled:1\r\n\
                            aof_last_bgrewrite_status:ok\r\naof_last_write_status:ok\r\n";

    #[test]
    fn info_is_read_as_far_as_it_goes() {
        let all_well = ServerState {
            memory: Some(1 << 20),
            memory_limit: Some(0),
            evicted_keys: Some(3),
            is_persistence_ok: Some(true),
            replicas: None,
        };
        let read = |info: &str| ServerState::of(&ServerInfo::read(info));
        assert_eq!(read(ALL_WELL), all_well);
        for status in ["rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status"] {
            let info = ALL_WELL.replace(&format!("{status}:ok"), &format!("{status}:err"));
            let expected = ServerState { is_persistence_ok: Some(false), ..all_well };
            assert_eq!(read(&info), expected, "{status}");
        }
        assert_eq!(read(""), ServerState::default());
        let replicas = "connected_slaves:3\r\nslave0:ip=a,port=1,state=online,offset=7,lag=0\r\n\
                        slave1:ip=b,port=1,state=wait_bgsave,offset=0,lag=9\r\nslave2:ip=c,port=1,state=online,lag=1\r\n";
        assert_eq!(read(replicas).replicas, Some(2));

        let full =
            ServerState { memory_limit: Some(1 << 30), is_persistence_ok: Some(false), replicas: Some(1), ..all_well };
        let both = ServerState { replicas: Some(2), ..all_well }.and(full);
        let expected = ServerState {
            memory: Some(2 << 20),
            memory_limit: Some(0),
            evicted_keys: Some(6),
            is_persistence_ok: Some(false),
            replicas: Some(1),
        };
        assert_eq!(both, expected);
    }
}
