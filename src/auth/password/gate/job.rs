//! A job of the hashing queue: the work, and who waits for it.
use std::time::Instant;

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info_span};

use super::{HashError, Verdict};
use crate::telemetry::traces;

pub(super) struct Job {
    pub(super) work: Work,
    /// Its place in the order. See [`super::turns::Turns`].
    pub(super) turn: u64,
    /// Cancelled when nobody waits for it any more.
    pub(super) gone: CancellationToken,
    pub(super) queued: Instant,
    /// The span from admission until a thread takes the job.
    pub(super) waiting: Span,
    /// The span of the request that asked.
    pub(super) request: Span,
}

pub(super) enum Work {
    Hash { password: SecretString, reply: oneshot::Sender<Result<SecretString, HashError>> },
    Verify { password: SecretString, stored: Option<SecretString>, reply: oneshot::Sender<Result<Verdict, HashError>> },
}

impl Job {
    pub(super) fn is_abandoned(&self) -> bool {
        self.gone.is_cancelled() || self.work.is_abandoned()
    }
}

impl Work {
    /// Answers with an error, which nobody reads if the requester has gone.
    pub(super) fn refuse(self, error: HashError) {
        match self {
            Self::Hash { reply, .. } => drop(reply.send(Err(error))),
            Self::Verify { reply, .. } => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn span(&self, request: &Span) -> Span {
        match self {
            Self::Hash { .. } => info_span!(target: traces::TARGET, parent: request, "password hash"),
            Self::Verify { .. } => info_span!(target: traces::TARGET, parent: request, "password verify"),
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Hash { reply, .. } => reply.is_closed(),
            Self::Verify { reply, .. } => reply.is_closed(),
        }
    }
}
