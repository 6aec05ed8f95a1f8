//! The test plays a proxy in front of applications, which asks the fleet, and a browser that uses them.
use super::{Answer, Builder, Call, Replica, Session};

/// The host of `PUBLIC_URL`.
pub const LOGIN_HOST: &str = "login.example.test";
/// Two of the `PROTECTED_HOSTS`.
pub const APP: &str = "app.example.test";
pub const WIKI: &str = "wiki.example.test";
/// The identity headers, in the order of the contract.
pub const IDENTITY: [&str; 5] = ["remote-user", "remote-email", "remote-user-id", "remote-groups", "remote-session-id"];

/// A proxy, by its way of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    /// Traefik, Caddy, `HAProxy`.
    Forward,
    Envoy,
}

impl Proxy {
    pub fn each() -> impl Iterator<Item = Self> {
        [Self::Nginx, Self::Forward, Self::Envoy].into_iter().inspect(|proxy| println!("asked by {proxy:?}"))
    }

    /// The proxy's question about a request for `http://HOST/TARGET`: its method, path and headers.
    pub fn question(self, method: &str, host: &str, target: &str) -> Question {
        let (path, headers) = match self {
            Self::Nginx => {
                let url = format!("http://{host}{target}");
                ("/auth/verify/nginx", vec![("x-original-method", method.to_owned()), ("x-original-url", url)])
            }
            Self::Forward => {
                let headers = [
                    ("x-forwarded-method", method),
                    ("x-forwarded-proto", "http"),
                    ("x-forwarded-host", host),
                    ("x-forwarded-uri", target),
                ];
                ("/auth/verify/forward", headers.map(|(name, value)| (name, value.to_owned())).to_vec())
            }
            Self::Envoy => {
                let headers = vec![("host", host.to_owned())];
                return Question { method: method.to_owned(), path: format!("/auth/verify/envoy{target}"), headers };
            }
        };
        Question { method: "GET".to_owned(), path: path.to_owned(), headers }
    }

    /// Asks a replica.
    pub fn ask(self, replica: &Replica, method: &str, host: &str, target: &str) -> Call {
        let Question { method, path, headers } = self.question(method, host, target);
        headers.iter().fold(replica.call(&method, &path), |call, (name, value)| call.header(name, value))
    }
}

/// A request by which a proxy asks.
#[derive(Debug)]
pub struct Question {
    pub method: String,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
}

/// The values of the identity headers. Fails the test if one is missing or occurs twice.
#[track_caller]
pub fn identity(answer: &Answer) -> [String; 5] {
    IDENTITY.map(|name| {
        let values: Vec<_> = answer.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {:?}", answer.headers);
        values[0].to_str().expect("ASCII").to_owned()
    })
}

/// A browser's cookies on the host of one application.
#[derive(Clone, Debug)]
pub struct Visitor {
    pub host: String,
    /// `authfleet-start=…`.
    pub start: String,
    /// The path and query of the page for signing in.
    pub sign_in: String,
}

impl Visitor {
    /// Opens an application without a session: `/.authfleet/start` on its host.
    pub async fn comes(replica: &Replica, host: &str, to: &str) -> Self {
        let to: String = percent_encoding::utf8_percent_encode(to, percent_encoding::NON_ALPHANUMERIC).to_string();
        let answer = replica.get(&format!("/.authfleet/start?to={to}")).header("host", host).send().await.expect(302);
        let (start, attributes) = answer.set_cookie();
        assert_eq!(attributes, ["HttpOnly", "Max-Age=1800", "Path=/", "SameSite=Lax"]);
        let location = answer.header("location").expect("a place to go to");
        let sign_in = location.strip_prefix(&format!("http://{LOGIN_HOST}")).expect("the page for signing in");
        assert!(sign_in.starts_with("/sign-in?host="), "{location}");
        Self { host: host.to_owned(), start, sign_in: sign_in.to_owned() }
    }

    /// Opens the page for signing in with a session. Returns the path and query of the callback that it redirects to.
    pub async fn signed_in(&self, replica: &Replica, session: &Session) -> String {
        let answer = replica.get(&self.sign_in).header("host", LOGIN_HOST).session(session).send().await.expect(303);
        let location = answer.header("location").expect("a place to go to");
        let callback = location.strip_prefix(&format!("http://{}", self.host)).expect("the application's host");
        assert!(callback.starts_with("/.authfleet/callback?code="), "{location}");
        callback.to_owned()
    }

    /// Sends a callback's code, as this browser.
    pub fn calls_back(&self, replica: &Replica, callback: &str) -> Call {
        replica.get(callback).header("host", &self.host).cookie(&self.start)
    }
}

/// Takes a session to the host of an application. Returns its cookie there: `authfleet=…`.
pub async fn opened_at(replica: &Replica, session: &Session, host: &str) -> String {
    let visitor = Visitor::comes(replica, host, "/").await;
    let callback = visitor.signed_in(replica, session).await;
    visitor.calls_back(replica, &callback).send().await.expect(302).set_cookie().0
}

impl Builder {
    /// With applications behind a proxy on this machine.
    pub fn with_applications(self) -> Self {
        self.env("PUBLIC_URL", &format!("http://{LOGIN_HOST}"))
            .env("PROTECTED_HOSTS", &format!("{APP},{WIKI},*.apps.example.test"))
            .env("TRUSTED_PROXIES", "127.0.0.1")
    }

    /// With applications and these access rules, which become `rules.toml` in the fleet's directory.
    pub fn with_rules(mut self, rules: &str) -> Self {
        self.rules = Some(rules.to_owned());
        self.with_applications().env("ACCESS_RULES", "rules.toml")
    }
}
