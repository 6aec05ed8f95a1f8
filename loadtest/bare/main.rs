//! The least that a session check can cost, for comparison: a plain axum handler that does one pipelined HGETALL +
//! EXPIRE over one multiplexed connection. It has no signature, limits, log, metrics or error envelope.
//!
//! Usage: `bare LISTEN_ADDR REDIS_URL`. The cookie `session=KEY` names the hash to read, whatever the path, so that a proxy
//! can ask it too.
use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Json, Router};
use redis::aio::MultiplexedConnection;

async fn profile(
    State(mut redis): State<MultiplexedConnection>,
    headers: HeaderMap,
) -> Result<Json<HashMap<String, String>>, StatusCode> {
    let cookie = headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = cookie.strip_prefix("session=").ok_or(StatusCode::UNAUTHORIZED)?;
    let (session, _): (HashMap<String, String>, bool) = redis::pipe()
        .hgetall(key)
        .expire(key, 1800)
        .query_async(&mut redis)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    if session.is_empty() { Err(StatusCode::UNAUTHORIZED) } else { Ok(Json(session)) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, url] = arguments.as_slice() else { return Err("usage: bare LISTEN_ADDR REDIS_URL".into()) };
    let redis = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    let router = Router::new().fallback(profile).with_state(redis);
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}
