//! A server that takes writes.
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::access::{Access, RESPONSE_TIMEOUT};
use super::link::{Link, Target};
use super::{Answer, Request};
use crate::config::RedisNode;
use crate::store::StoreError;

/// How long replicas have to confirm, in one `WAIT`.
pub(super) const CONFIRMATION: Duration = Duration::from_millis(500);
/// How long the reply to `WAIT` may take. An earlier `WAIT` on the same connection may have used up its own limit
/// first.
const CONFIRMING_TIMEOUT: Duration = Duration::from_millis(1200);

/// A primary, and the links to it.
#[derive(Debug)]
pub(super) struct Primary {
    target: Arc<Target>,
    link: Link,
    /// For writes that replicas must confirm. `WAIT` blocks its connection; on a shared one it would delay every check.
    confirming: Option<Link>,
}

impl fmt::Display for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

impl Primary {
    pub(super) fn new(access: &Arc<Access>, target: Target, confirms: bool) -> Self {
        let target = Arc::new(target);
        let link = |patience| Link::new(Arc::clone(access), Arc::clone(&target), patience);
        let confirming = confirms.then(|| link(CONFIRMING_TIMEOUT));
        Self { link: link(RESPONSE_TIMEOUT), confirming, target }
    }

    /// See [`Link::exchange`]. With `confirm`, on the link that may block.
    pub(super) async fn exchange(
        &self,
        pipeline: &redis::Pipeline,
        script: Option<&redis::ScriptInvocation<'_>>,
        confirm: bool,
    ) -> Result<Vec<Value>, StoreError> {
        match &self.confirming {
            Some(link) if confirm => link.exchange(pipeline, script).await,
            _ => self.link.exchange(pipeline, script).await,
        }
    }

    /// See [`Link::ask`].
    pub(super) async fn ask(&self, request: &Request<'_>) -> Result<Answer, StoreError> {
        self.link.ask(request).await
    }

    /// Records the primary that the Sentinels name.
    pub(super) fn is_at(&self, node: &RedisNode) {
        self.link.primary_is(node);
        self.confirming.iter().for_each(|link| link.primary_is(node));
    }
}
