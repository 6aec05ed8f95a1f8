//! One connection: requests of any number of tasks go out in order, and replies come back in the same order.
//!
//! The client library's multiplexed connection does the same. It isn't used, because with it a session check takes a
//! sixth more CPU time (`loadtest/bench --against`): each request is packed into a buffer of its own, passes a channel,
//! is copied into the connection's buffer and has a timer, and each reply becomes a tree of values. Here a request is
//! packed into the buffer that is sent, replies are only delimited, and one timer serves all requests.
//!
//! Replies are told apart by their order alone, and a reply that reached the wrong request would show one user's session
//! to another. So the driver drops nothing out of order: replies to a request that nobody waits for any more are still
//! awaited and dropped in their turn, and bytes that nobody asked for end the connection.
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use redis::aio::ConnectionLike;
use redis::{Cmd, RedisError, RedisFuture, RedisResult, Value};
use tokio::io::AsyncWrite as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::frames::{Replies, Search, push};
use super::stream::Stream;

/// Room for each read.
const READ_SIZE: usize = 16 * 1024;
/// A larger buffer is given back after a burst.
const LARGE: usize = 256 * 1024;

/// The side of a connection that sends requests.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Queue>>);

/// What waits for the driver.
#[derive(Default)]
struct Queue {
    /// Requests, packed.
    bytes: Vec<u8>,
    /// Who sent them, in the same order.
    senders: VecDeque<Sender>,
    /// The driver's task, if it must be woken for the next request.
    driver: Option<Waker>,
    /// Why the connection has ended.
    ended: Option<RedisError>,
}

struct Sender {
    /// How many replies the request gets.
    replies: usize,
    /// `None` once it has been told that they are late.
    answer: Option<oneshot::Sender<RedisResult<Replies>>>,
}

impl Sender {
    fn answer(&mut self, answer: RedisResult<Replies>) {
        if let Some(sender) = self.answer.take() {
            // If nobody waits any more, the replies are dropped.
            drop(sender.send(answer));
        }
    }
}

impl Wire {
    /// Prepares a connection over a stream, and the task that moves its bytes. Replies may take up to `patience`.
    pub(super) fn new(stream: Box<dyn Stream>, patience: Duration) -> (Self, Driver) {
        let queue = Arc::<Mutex<Queue>>::default();
        let driver = Driver {
            stream,
            queue: Arc::clone(&queue),
            patience,
            unsent: Vec::new(),
            sent: 0,
            received: BytesMut::new(),
            search: Search::default(),
            senders: VecDeque::new(),
            taken: 0,
            answered: 0,
            deadlines: VecDeque::new(),
            timer: None,
        };
        (Self(queue), driver)
    }

    /// Sends what `pack` appends, which must not be nothing, and returns the replies, as many as `replies`.
    ///
    /// # Errors
    ///
    /// When the connection has ended, or the replies don't come in time.
    pub(super) async fn ask(&self, replies: usize, pack: impl FnOnce(&mut Vec<u8>)) -> RedisResult<Replies> {
        let (sender, answer) = oneshot::channel();
        let driver = {
            let mut queue = self.0.lock();
            if let Some(error) = &queue.ended {
                return Err(error.clone());
            }
            pack(&mut queue.bytes);
            queue.senders.push_back(Sender { replies, answer: Some(sender) });
            queue.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Sends a pipeline, and returns its replies, including errors.
    ///
    /// # Errors
    ///
    /// As [`Wire::ask`].
    pub(super) async fn pipeline(&self, pipeline: &redis::Pipeline) -> RedisResult<Vec<Value>> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let packed = pipeline.get_packed_pipeline();
        self.ask(pipeline.len(), |to| to.extend_from_slice(&packed)).await?.values()
    }
}

/// For what the client library does with a connection, such as loading a script.
impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let packed = command.get_packed_command();
            let replies = self.ask(1, |to| to.extend_from_slice(&packed)).await?.values()?;
            Ok(replies.into_iter().next().unwrap_or(Value::Nil))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let packed = pipeline.get_packed_pipeline();
            let replies = self.ask(offset + count, |to| to.extend_from_slice(&packed)).await?.values()?;
            Ok(replies.into_iter().skip(offset).collect())
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// The task that moves a connection's bytes. The connection ends with it.
pub(super) struct Driver {
    stream: Box<dyn Stream>,
    queue: Arc<Mutex<Queue>>,
    patience: Duration,
    /// Requests that are being sent, and how many of their bytes have been.
    unsent: Vec<u8>,
    sent: usize,
    received: BytesMut,
    /// For the end of the replies to the first of `senders`.
    search: Search,
    /// Who waits for replies.
    senders: VecDeque<Sender>,
    /// How many requests were taken from the queue, and how many of these have their replies.
    taken: u64,
    answered: u64,
    /// When requests up to the one of this number must have their replies.
    deadlines: VecDeque<(u64, Instant)>,
    /// Set for one of the deadlines, maybe a past one. It isn't set anew for each request, because that costs more than
    /// a request's share of everything else here.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        if let Err(error) = driver.advance(context) {
            driver.end(&error.into());
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Driver {
    fn advance(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        // First what has come, because it makes senders ready that may send again.
        self.receive(context)?;
        self.send(context)?;
        self.watch_time(context);
        Ok(())
    }

    fn receive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.received.capacity() - self.received.len() < READ_SIZE / 8 {
                self.received.reserve(READ_SIZE);
            }
            match poll_read_buf(Pin::new(&mut self.stream), context, &mut self.received) {
                Poll::Pending => return Ok(()),
                Poll::Ready(count) => match count? {
                    0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                    _ => self.deliver()?,
                },
            }
        }
    }

    /// Gives replies to those who wait for them.
    fn deliver(&mut self) -> io::Result<()> {
        while !self.received.is_empty() {
            let Some(sender) = self.senders.front_mut() else {
                let Some(end) = push(&self.received)? else {
                    if self.received[0] == b'>' {
                        return Ok(());
                    }
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply that nobody asked for"));
                };
                self.received.advance(end);
                continue;
            };
            let Some((end, has_error)) = self.search.end(&self.received, sender.replies)? else { return Ok(()) };
            let bytes = self.received.split_to(end).freeze();
            sender.answer(Ok(Replies { bytes, has_error }));
            self.senders.pop_front();
            self.answered += 1;
        }
        Ok(())
    }

    fn send(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let mut is_blocked = false;
        // Requests that come after the last look into the queue wake the task. They are also taken while the server doesn't
        // read, so that they are late in time.
        while self.take(context) || (!is_blocked && self.sent < self.unsent.len()) {
            while !is_blocked && self.sent < self.unsent.len() {
                match Pin::new(&mut self.stream).poll_write(context, &self.unsent[self.sent..]) {
                    Poll::Pending => is_blocked = true,
                    Poll::Ready(written) => match written? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        count => self.sent += count,
                    },
                }
            }
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    /// Takes all requests from the queue. Returns whether there were any; if not, the next one wakes the task.
    fn take(&mut self, context: &mut Context<'_>) -> bool {
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
            if self.unsent.capacity() > LARGE {
                self.unsent = Vec::new();
            }
        }
        let mut queue = self.queue.lock();
        if queue.bytes.is_empty() {
            if !queue.driver.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                queue.driver = Some(context.waker().clone());
            }
            return false;
        }
        if self.unsent.is_empty() {
            std::mem::swap(&mut self.unsent, &mut queue.bytes);
        } else {
            self.unsent.append(&mut queue.bytes);
        }
        self.taken += queue.senders.len() as u64;
        self.senders.append(&mut queue.senders);
        drop(queue);
        self.deadlines.push_back((self.taken, Instant::now() + self.patience));
        true
    }

    /// Tells those whose replies are late. They keep their places, because the replies may still come.
    fn watch_time(&mut self, context: &mut Context<'_>) {
        loop {
            while self.deadlines.pop_front_if(|(last, _)| *last <= self.answered).is_some() {}
            let Some(&(last, deadline)) = self.deadlines.front() else { return };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.as_mut().poll(context).is_pending() {
                return;
            }
            if deadline > Instant::now() {
                timer.as_mut().reset(deadline);
                continue;
            }
            let late = usize::try_from(last - self.answered).unwrap_or(usize::MAX);
            for sender in self.senders.iter_mut().take(late) {
                sender.answer(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            }
            self.deadlines.pop_front();
        }
    }

    fn end(&mut self, error: &RedisError) {
        let mut queue = self.queue.lock();
        queue.ended.get_or_insert_with(|| error.clone());
        queue.bytes = Vec::new();
        self.senders.append(&mut queue.senders);
        drop(queue);
        for mut sender in self.senders.drain(..) {
            sender.answer(Err(error.clone()));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end(&closed());
    }
}

fn closed() -> RedisError {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection has been given up").into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_util::task::AbortOnDropHandle;

    use super::super::frames::pack;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// A connection, and the server's end of it.
    fn connection() -> (Wire, AbortOnDropHandle<()>, DuplexStream) {
        // Small, so that neither side writes much at once.
        let (stream, server) = duplex(64);
        let (wire, driver) = Wire::new(Box::new(stream), PATIENCE);
        (wire, AbortOnDropHandle::new(tokio::spawn(driver)), server)
    }

    /// Sends a number as a command that gets `replies` replies.
    fn ask(wire: &Wire, number: usize, replies: usize) -> tokio::task::JoinHandle<RedisResult<Vec<Value>>> {
        let wire = wire.clone();
        tokio::spawn(async move {
            let word = number.to_string();
            wire.ask(replies, |to| pack(&[word.as_bytes()], to)).await?.values()
        })
    }

    /// Reads one command.
    async fn command(server: &mut DuplexStream) -> String {
        let mut bytes = Vec::new();
        while Search::default().end(&bytes, 1).expect("a command").is_none() {
            bytes.push(server.read_u8().await.expect("a byte"));
        }
        let Value::Array(words) = redis::parse_redis_value(&bytes).expect("a command") else { panic!("a command") };
        redis::from_redis_value(words.into_iter().next().expect("a word")).expect("text")
    }

    async fn failure(asked: tokio::task::JoinHandle<RedisResult<Vec<Value>>>) -> RedisError {
        asked.await.expect("no panic").expect_err("no answer")
    }

    #[tokio::test]
    async fn everybody_gets_the_replies_to_their_own_request() {
        let (wire, _driver, mut server) = connection();
        let asked: Vec<_> = (0..200).map(|number| (number, ask(&wire, number, 1 + number % 3))).collect();
        tokio::spawn(async move {
            for _ in 0..200 {
                let number: usize = command(&mut server).await.parse().expect("a number");
                for part in format!(":{number}\r\n").repeat(1 + number % 3).as_bytes().chunks(3) {
                    server.write_all(part).await.expect("sent");
                }
            }
            server
        });
        for (number, asked) in asked {
            let replies = asked.await.expect("no panic").expect("an answer");
            assert_eq!(replies, vec![Value::Int(number.try_into().expect("small")); 1 + number % 3]);
        }
    }

    #[tokio::test]
    async fn the_reply_to_who_has_gone_reaches_nobody_else() {
        let (wire, _driver, mut server) = connection();
        let gone = ask(&wire, 1, 1);
        assert_eq!(command(&mut server).await, "1");
        gone.abort();
        assert!(gone.await.is_err());
        let next = ask(&wire, 2, 1);
        assert_eq!(command(&mut server).await, "2");
        server.write_all(b":1\r\n:2\r\n").await.expect("sent");
        assert_eq!(next.await.expect("no panic"), Ok(vec![Value::Int(2)]));
    }

    #[tokio::test]
    async fn a_late_reply_reaches_nobody() {
        let (wire, _driver, mut server) = connection();
        let late = failure(ask(&wire, 1, 1)).await;
        assert!(late.is_timeout(), "{late}");
        let next = ask(&wire, 2, 1);
        for number in ["1", "2"] {
            assert_eq!(command(&mut server).await, number);
        }
        server.write_all(b":1\r\n:2\r\n").await.expect("sent");
        assert_eq!(next.await.expect("no panic"), Ok(vec![Value::Int(2)]));
    }

    #[tokio::test]
    async fn whoever_asks_a_server_that_reads_nothing_learns_that_it_is_late() {
        let (wire, _driver, _server) = connection();
        let first: Vec<_> = (0..40).map(|number| ask(&wire, number, 1)).collect();
        tokio::time::sleep(PATIENCE / 2).await;
        let then = ask(&wire, 40, 1);
        for asked in first.into_iter().chain([then]) {
            assert!(failure(asked).await.is_timeout());
        }
    }

    #[tokio::test]
    async fn patience_is_counted_from_each_request() {
        let (wire, _driver, mut server) = connection();
        for number in 1..=4 {
            let asked = ask(&wire, number, 1);
            assert_eq!(command(&mut server).await, number.to_string());
            tokio::time::sleep(PATIENCE / 2).await;
            server.write_all(format!(":{number}\r\n").as_bytes()).await.expect("sent");
            assert!(asked.await.expect("no panic").is_ok(), "request {number}");
        }
    }

    #[tokio::test]
    async fn bytes_that_nobody_asked_for_end_the_connection() {
        let (wire, driver, mut server) = connection();
        server.write_all(b">1\r\n+news\r\n").await.expect("sent");
        let asked = ask(&wire, 1, 1);
        assert_eq!(command(&mut server).await, "1");
        server.write_all(b":1\r\n").await.expect("sent");
        assert_eq!(asked.await.expect("no panic"), Ok(vec![Value::Int(1)]), "a push is let pass");
        server.write_all(b":2\r\n").await.expect("sent");
        driver.await.expect("no panic");
        let refused = failure(ask(&wire, 3, 1)).await;
        assert!(refused.is_io_error() && refused.to_string().contains("nobody asked for"), "{refused}");
    }

    #[tokio::test]
    async fn everybody_learns_that_the_connection_has_ended() {
        for is_server in [true, false] {
            let (wire, driver, mut server) = connection();
            let asked = [ask(&wire, 1, 1), ask(&wire, 2, 1)];
            command(&mut server).await;
            if is_server {
                drop(server);
            } else {
                drop(driver);
            }
            for asked in asked {
                assert!(failure(asked).await.is_connection_dropped());
            }
            assert!(failure(ask(&wire, 3, 1)).await.is_connection_dropped());
        }
    }
}
