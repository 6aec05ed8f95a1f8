//! The least that a session check can cost, for comparison: a plain axum handler that does one pipelined HGETALL +
//! EXPIRE over one multiplexed connection. It has no signature, limits, log, metrics or error envelope.
//!
//! Usage: `bare LISTEN_ADDR REDIS_URL`. The cookie `session=KEY` names the hash to read. `GET /profile` answers with it; any
//! other path is for proxies that ask, and answers 200 without a body.
use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use redis::aio::MultiplexedConnection;

async fn look_up(mut redis: MultiplexedConnection, headers: &HeaderMap) -> Result<HashMap<String, String>, StatusCode> {
    let cookie = headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = cookie.strip_prefix("session=").ok_or(StatusCode::UNAUTHORIZED)?;
    let (session, _): (HashMap<String, String>, bool) = redis::pipe()
        .hgetall(key)
        .expire(key, 1800)
        .query_async(&mut redis)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    if session.is_empty() { Err(StatusCode::UNAUTHORIZED) } else { Ok(session) }
}

async fn profile(
    State(redis): State<MultiplexedConnection>,
    headers: HeaderMap,
) -> Result<Json<HashMap<String, String>>, StatusCode> {
    look_up(redis, &headers).await.map(Json)
}

/// Without a body, after which a proxy that asks would close the connection.
async fn verify(State(redis): State<MultiplexedConnection>, headers: HeaderMap) -> Result<StatusCode, StatusCode> {
    look_up(redis, &headers).await.map(|_| StatusCode::OK)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, url] = arguments.as_slice() else { return Err("usage: bare LISTEN_ADDR REDIS_URL".into()) };
    let redis = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    let router = Router::new().route("/profile", get(profile)).fallback(verify).with_state(redis);
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}
