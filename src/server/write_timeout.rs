//! A time limit for clients to read their answers.
//!
//! hyper limits the time in which a request's head arrives, but not the time in which the answer is read: a client that
//! never reads would keep its connection and the answer for ever. tower-http's time-outs limit only how long it takes
//! to make an answer.
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

/// A client that has not taken [`PROGRESS`] more bytes by then is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that a client must take in that time: half a KiB a second.
const PROGRESS: usize = 10 * 1024;

pin_project_lite::pin_project! {
    /// A stream whose writes fail with [`io::ErrorKind::TimedOut`] if the other side stops taking them.
    pub(super) struct WriteTimeout<S> {
        #[pin]
        stream: S,
        // Made by the first write that has to wait. Most connections never wait.
        timer: Option<Pin<Box<Sleep>>>,
        // Whether a write is waiting.
        waiting: bool,
        // Bytes taken since the time limit was set.
        taken: usize,
    }
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, timer: None, waiting: false, taken: 0 }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Passes on the outcome of a write or a flush, and fails once a wait has lasted too long. `taken` says how many
    /// bytes the client took. `None` for a flush.
    fn limited<T>(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        taken: impl FnOnce(&T) -> Option<usize>,
    ) -> Poll<io::Result<T>> {
        let this = self.project();
        match outcome {
            Poll::Ready(Ok(done)) => {
                if *this.waiting {
                    match taken(&done) {
                        // hyper flushes when it has nothing more to write.
                        None => *this.waiting = false,
                        Some(bytes) => {
                            *this.taken += bytes;
                            if *this.taken >= PROGRESS {
                                *this.taken = 0;
                                restart(this.timer);
                            }
                        }
                    }
                }
                Poll::Ready(Ok(done))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if !*this.waiting {
                    (*this.waiting, *this.taken) = (true, 0);
                    restart(this.timer);
                }
                let timer = this.timer.as_mut().expect("set when the wait began");
                match timer.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

fn restart(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().reset(Instant::now() + WRITE_TIMEOUT),
        None => *timer = Some(Box::pin(tokio::time::sleep(WRITE_TIMEOUT))),
    }
}

impl<S: Read> Read for WriteTimeout<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(context, buffer)
    }
}

impl<S: Write> Write for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write(context, buffer);
        self.limited(context, outcome, |bytes| Some(*bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write_vectored(context, buffers);
        self.limited(context, outcome, |bytes| Some(*bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.as_mut().project().stream.poll_flush(context);
        self.limited(context, outcome, |()| None)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.as_mut().project().stream.poll_shutdown(context);
        self.limited(context, outcome, |()| None)
    }
}
