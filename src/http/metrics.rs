//! Request metrics. Looking up a metric's handle costs more than using it, so each thread keeps the handles that it has
//! used.
use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::Duration;

use http::{Method, StatusCode};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::metrics::{HTTP_IN_FLIGHT, HTTP_REQUESTS, HTTP_SECONDS};

/// The route label of requests that matched none: a client may send any path, so all of them share one series.
const UNMATCHED: &str = "unmatched";

struct Series {
    method: &'static str,
    route: String,
    seconds: Histogram,
    by_status: Vec<(StatusCode, Counter)>,
}

thread_local! {
    static SERIES: RefCell<Vec<Series>> = const { RefCell::new(Vec::new()) };
}

/// The gauge of requests in flight. It is looked up before the first request too, so that it shows 0 rather than
/// nothing.
pub(super) fn in_flight() -> &'static Gauge {
    static GAUGE: OnceLock<Gauge> = OnceLock::new();
    GAUGE.get_or_init(|| gauge!(HTTP_IN_FLIGHT))
}

/// A request that is being answered; counted down when dropped, however it ends.
#[derive(Debug)]
pub(super) struct InFlight(());

impl InFlight {
    /// Counts a request that has begun.
    pub(super) fn begin() -> Self {
        in_flight().increment(1);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        in_flight().decrement(1);
    }
}

/// Counts a request that has ended.
pub(super) fn finished(method: &Method, route: Option<&str>, status: StatusCode, elapsed: Duration) {
    let method = bounded(method);
    let route = route.unwrap_or(UNMATCHED);
    SERIES.with_borrow_mut(|all| {
        // A dozen series at most, so a scan beats a hash.
        let found = all.iter().position(|series| series.method == method && series.route == route);
        let at = found.unwrap_or_else(|| {
            let seconds = histogram!(HTTP_SECONDS, "method" => method, "route" => route.to_owned());
            let mut series = Series { method, route: route.to_owned(), seconds, by_status: Vec::new() };
            // Shown as 0 before the first failure: the objective for availability counts increases, and from nothing to
            // 1 is none.
            series.counter(StatusCode::SERVICE_UNAVAILABLE);
            all.push(series);
            all.len() - 1
        });
        let series = &mut all[at];
        series.seconds.record(elapsed);
        series.counter(status).increment(1);
    });
}

impl Series {
    fn counter(&mut self, status: StatusCode) -> &Counter {
        let found = self.by_status.iter().position(|(known, _)| *known == status);
        let at = found.unwrap_or_else(|| {
            let (method, route, code) = (self.method, self.route.clone(), status.as_str().to_owned());
            let counter = counter!(HTTP_REQUESTS, "method" => method, "route" => route, "status" => code);
            self.by_status.push((status, counter));
            self.by_status.len() - 1
        });
        &self.by_status[at].1
    }
}

/// The method as a label. A client may send any method, so all but the usual ones share a label.
pub(super) fn bounded(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
