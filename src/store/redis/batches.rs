//! Requests that are ready at the same time share one write and one read.
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Runs the task that moves a connection's bytes, and polls it after all tasks that are ready when it wakes.
///
/// The first request or reply wakes the task, and polled at once it would move just that one. After the other tasks it
/// finds what they have sent meanwhile: one system call serves several requests, here and in Redis, which answers at once
/// what it reads at once. Under load this saves half of Redis's CPU time per session check and a tenth of the server's
/// (`loadtest/bench --against`). An idle server has no other task that is ready, so nothing waits.
pub(super) async fn in_batches<F: Future>(driver: F) -> F::Output {
    let mut driver = pin!(driver);
    let mut has_given_way = false;
    poll_fn(|context| {
        has_given_way = !has_given_way;
        if has_given_way {
            // Tokio puts a task that wakes itself behind all others.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        driver.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;
    use tokio::sync::Notify;

    use super::*;

    const REQUESTS: usize = 8;

    #[derive(Default)]
    struct Connection {
        sent: AtomicUsize,
        wake: Notify,
        writes: Mutex<Vec<usize>>,
    }

    /// Returns how many requests each write of a driver had. All are made by tasks that become ready together.
    async fn writes<F: Future<Output = ()> + Send + 'static>(
        wrapped: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> F + Send + 'static,
    ) -> Vec<usize> {
        let connection = Arc::<Connection>::default();
        let moving = Arc::clone(&connection);
        let driver = tokio::spawn(wrapped(Box::pin(async move {
            while moving.writes.lock().iter().sum::<usize>() < REQUESTS {
                moving.wake.notified().await;
                let sent = moving.sent.swap(0, Ordering::Relaxed);
                moving.writes.lock().push(sent);
            }
        })));
        tokio::task::yield_now().await;
        for _ in 0..REQUESTS {
            let connection = Arc::clone(&connection);
            tokio::spawn(async move {
                connection.sent.fetch_add(1, Ordering::Relaxed);
                connection.wake.notify_one();
            });
        }
        driver.await.expect("the driver ends");
        connection.writes.lock().clone()
    }

    /// On one worker of the runtime that serves requests, where a task that is woken runs next.
    #[test]
    fn requests_that_are_ready_together_share_a_write() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).build().expect("a runtime");
        let (alone, batched) = runtime
            .block_on(runtime.spawn(async { (writes(|driver| driver).await, writes(in_batches).await) }))
            .expect("the test's task ends");
        assert_eq!(batched, [REQUESTS]);
        assert!(alone.len() > 1, "nothing is gained by giving way: {alone:?}");
    }
}
