//! `healthcheck`: for containers without a shell.
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::print;
use crate::config::Config;

/// How long it waits for an answer. Readiness answers within two seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn healthcheck(config: &Config, live: bool) -> ExitCode {
    let mut address = config.ops_addr;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            "::1".parse().expect("an address")
        });
    }
    let path = if live { "/livez" } else { "/readyz" };
    match tokio::time::timeout(TIMEOUT, get(address, path)).await {
        Ok(Ok((true, body))) => print(&body),
        Ok(Ok((false, body))) => {
            eprintln!("{}", body.trim_end());
            ExitCode::FAILURE
        }
        Ok(Err(error)) => {
            eprintln!("http://{address}{path}: {error}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("http://{address}{path}: no answer within {} s", TIMEOUT.as_secs());
            ExitCode::FAILURE
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", address.to_string()).body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let is_ok = response.status().is_success();
    Ok((is_ok, String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned()))
}
