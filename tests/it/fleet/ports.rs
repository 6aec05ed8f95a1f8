//! Ports of servers that tests start and stop.
use tokio::net::TcpSocket;

/// A port, and the socket that keeps it reserved while nobody listens.
#[derive(Debug)]
pub struct Port {
    /// The address that it belongs to.
    pub host: String,
    pub number: u16,
    #[expect(dead_code, reason = "it is kept")]
    held: Option<TcpSocket>,
}

impl Port {
    /// A free port. Redis can't inherit a socket, and doesn't say which port it chose for 0.
    pub fn free() -> Self {
        Self::free_at("127.0.0.1")
    }

    /// The same of another address of this machine.
    pub fn free_at(host: &str) -> Self {
        let (number, held) = bound(&format!("{host}:0"));
        Self { host: host.to_owned(), number, held }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.number)
    }
}

/// Reserves a port for a listener that is down: the socket is bound but doesn't listen, so that connections are refused
/// and nothing else takes the port. Linux allows a listener to bind beside it. Elsewhere the port isn't reserved.
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
