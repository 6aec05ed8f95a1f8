//! Sentinels, which say which server is the primary, and when that changes.
//!
//! The client library asks Sentinels one after the other, so each frozen one costs a time-out, and it believes the
//! first answer. Here all are asked at once, and the answer with the newest configuration is believed, because a
//! Sentinel that is cut off together with the old primary still names the old one.
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::aio::PubSub;
use redis::{FromRedisValue as _, RedisConnectionInfo, Value};

use super::access::{Access, CONNECT_TIMEOUT, RESPONSE_TIMEOUT, first_answers, login, open};
use super::stream::Dialer;
use crate::config::{RedisConfig, RedisNode};
use crate::store::StoreError;

/// How long Sentinels may take altogether. The rest of [`CONNECT_TIMEOUT`] is left for the primary.
const ASKING: Duration = Duration::from_millis(350);
/// How long to wait for the other Sentinels' answers after the first one.
const GRACE: Duration = Duration::from_millis(100);
/// What a Sentinel publishes once a failover is over.
const SWITCHED: &str = "+switch-master";
/// After this time, messages are read from the next Sentinel, because a silent Sentinel looks like one without news.
/// The primary is then asked for, in case a message was missed.
const LISTENING: Duration = Duration::from_secs(30);
/// The pause after a Sentinel that can't be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// The Sentinels of one primary.
pub(super) struct Sentinels {
    nodes: Vec<RedisNode>,
    primary: String,
    info: RedisConnectionInfo,
}

/// Leaves out the password.
impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels").field("nodes", &self.nodes).field("primary", &self.primary).finish_non_exhaustive()
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the primary {:?}", self.primary)
    }
}

/// What one Sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Opinion {
    /// Grows with each failover.
    epoch: u64,
    primary: RedisNode,
}

impl Sentinels {
    pub(super) fn new(config: &RedisConfig, nodes: &[RedisNode], primary: &str) -> Self {
        let info = login(config.sentinel_username.as_deref(), config.sentinel_password.as_ref());
        Self { nodes: nodes.to_vec(), primary: primary.to_owned(), info }
    }

    /// The primary's address.
    ///
    /// # Errors
    ///
    /// When no Sentinel answers, or none knows the primary.
    pub(super) async fn primary(&self, dialer: &Dialer) -> Result<RedisNode, StoreError> {
        let asked = self.nodes.iter().map(|node| self.ask(dialer, node)).collect::<FuturesUnordered<_>>();
        let (opinions, error) = first_answers(asked, ASKING, GRACE).await;
        let newest = opinions.into_iter().max_by_key(|opinion| opinion.epoch);
        newest.map(|opinion| opinion.primary).ok_or_else(|| {
            error.unwrap_or_else(|| {
                StoreError::new(format!("REDIS_URL: no Sentinel answered within {} ms", ASKING.as_millis()))
            })
        })
    }

    /// Asks each Sentinel for the primary's address: pairs of the Sentinel's address and its answer.
    pub(super) async fn each(&self, dialer: &Dialer) -> Vec<(String, Result<String, StoreError>)> {
        let asked = self.nodes.iter().map(async |node| {
            let late = |_| Err(StoreError::new("no answer in time"));
            let answer = tokio::time::timeout(CONNECT_TIMEOUT, self.ask(dialer, node)).await.unwrap_or_else(late);
            (node.to_string(), answer.map(|opinion| opinion.primary.to_string()))
        });
        join_all(asked).await
    }

    async fn ask(&self, dialer: &Dialer, node: &RedisNode) -> Result<Opinion, StoreError> {
        let name = format!("the Sentinel {node}");
        let (connection, _driver) = open(dialer.tcp(node).await?, &self.info, RESPONSE_TIMEOUT, &name).await?;
        let mut questions = redis::Pipeline::with_capacity(2);
        questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.primary);
        questions.cmd("SENTINEL").arg("MASTER").arg(&self.primary);
        let replies = connection.pipeline(&questions).await?;
        self.opinion(replies).map_err(|error| StoreError::new(format!("REDIS_URL: {name}: {error}")))
    }

    fn opinion(&self, replies: Vec<Value>) -> Result<Opinion, String> {
        let mut replies = replies.into_iter();
        let (address, details) = (replies.next().unwrap_or(Value::Nil), replies.next().unwrap_or(Value::Nil));
        let address = match address {
            Value::ServerError(error) => return Err(redis::RedisError::from(error).to_string()),
            Value::Nil => return Err(format!("knows no primary of the name {:?}", self.primary)),
            address => <(String, u16)>::from_redis_value(address).map_err(|error| error.to_string())?,
        };
        // An ACL may allow only the first question.
        let details = std::collections::HashMap::<String, String>::from_redis_value(details).unwrap_or_default();
        let epoch = details.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let (host, port) = address;
        Ok(Opinion { epoch, primary: RedisNode { host, port } })
    }

    /// Calls `is_at` with the primary's address when it changes, and from time to time. Never returns.
    pub(super) async fn watch(self: Arc<Self>, access: Arc<Access>, is_at: impl Fn(&RedisNode)) {
        for node in self.nodes.iter().cycle() {
            if let Err(error) = self.listen(&access.dialer, node, &is_at).await {
                tracing::debug!(%error, sentinel = %node, "no news from this Sentinel");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn listen(&self, dialer: &Dialer, node: &RedisNode, is_at: &impl Fn(&RedisNode)) -> Result<(), StoreError> {
        let connect = async {
            let mut news = PubSub::new(&self.info, dialer.tcp(node).await?).await?;
            news.subscribe(SWITCHED).await?;
            Ok::<_, StoreError>(news)
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        let mut news = connected.map_err(|_| StoreError::new("no connection in time"))??;
        // The primary may have changed before this task began to listen.
        if let Ok(node) = self.primary(dialer).await {
            is_at(&node);
        }
        let listen = async {
            let mut messages = news.on_message();
            while let Some(message) = messages.next().await {
                let text: String = message.get_payload().unwrap_or_default();
                if let Some(node) = switched(&text, &self.primary) {
                    is_at(&node);
                }
            }
        };
        match tokio::time::timeout(LISTENING, listen).await {
            Ok(()) => Err(StoreError::new("the connection ended")),
            Err(_) => Ok(()),
        }
    }
}

/// The new address in `NAME OLD-IP OLD-PORT NEW-IP NEW-PORT`, if it is about this primary.
fn switched(text: &str, primary: &str) -> Option<RedisNode> {
    let mut words = text.strip_prefix(primary)?.strip_prefix(' ')?.split(' ').skip(2);
    Some(RedisNode { host: words.next()?.to_owned(), port: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_read_if_they_are_about_the_primary() {
        let new = RedisNode { host: "10.0.0.2".to_owned(), port: 6380 };
        assert_eq!(switched("main 10.0.0.1 6379 10.0.0.2 6380", "main"), Some(new));
        for other in ["main2 10.0.0.1 6379 10.0.0.2 6380", "main 10.0.0.1 6379", "main 1 2 3 x", ""] {
            assert_eq!(switched(other, "main"), None, "{other}");
        }
    }

    #[test]
    fn an_answer_is_read_whether_or_not_all_of_it_is_allowed() {
        let sentinels =
            Sentinels { nodes: Vec::new(), primary: "main".to_owned(), info: RedisConnectionInfo::default() };
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let address = || Value::Array(vec![text("10.0.0.2"), text("6380")]);
        let details = Value::Array(vec![text("name"), text("main"), text("config-epoch"), text("7")]);
        let opinion = |epoch| Ok(Opinion { epoch, primary: RedisNode { host: "10.0.0.2".to_owned(), port: 6380 } });
        assert_eq!(sentinels.opinion(vec![address(), details]), opinion(7));
        assert_eq!(sentinels.opinion(vec![address(), Value::Nil]), opinion(0));
        let unknown = sentinels.opinion(vec![Value::Nil, Value::Nil]).expect_err("unknown");
        assert!(unknown.contains("knows no primary of the name \"main\""), "{unknown}");
    }
}
