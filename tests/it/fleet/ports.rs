//! Ports of servers that are started and stopped by tests.
use tokio::net::TcpSocket;

/// A port, and what keeps it while nobody listens.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    #[expect(dead_code, reason = "it is kept")]
    held: Option<TcpSocket>,
}

impl Port {
    /// A free one. Redis takes no socket from its parent, and doesn't say which port it took for 0.
    pub fn free() -> Self {
        let (number, held) = bound("127.0.0.1:0");
        Self { number, held }
    }
}

/// Keeps a port for a listener that is down: bound, but not listening, so that connections are refused and nothing else
/// can take it. Linux lets a listener bind beside it; elsewhere the port is left to luck.
pub fn hold(address: &str) -> Option<TcpSocket> {
    bound(address).1
}

fn bound(address: &str) -> (u16, Option<TcpSocket>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.bind(address.parse().expect("an address")).unwrap_or_else(|error| panic!("{address}: {error}"));
    let number = socket.local_addr().expect("it is bound").port();
    (number, cfg!(target_os = "linux").then_some(socket))
}
