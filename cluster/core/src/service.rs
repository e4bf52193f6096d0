//! Services, as the proxy sees them: which one a port means, its handlers and limits.

use crate::load::Limits;
use crate::machine::{MachineConfig, Port, Service};

/// The chain of handlers of a port (SPEC HND-2). Chains that this build does not serve are refused
/// at deploy, never served halfway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HandlerChain {
    /// Bytes pass unchanged.
    Raw,
    /// HTTP in the clear.
    Http,
    /// HTTP inside TLS.
    TlsHttp,
    /// TLS ends here, bytes pass on.
    Tls,
    /// PostgreSQL's TLS negotiation.
    PgTls,
    /// A PROXY header goes before the bytes.
    ProxyProto,
    /// TLS ends here, a PROXY header goes before the bytes.
    TlsProxyProto,
}

/// Handlers that make no chain; whoever wrote the configuration caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHandlers {
    /// A handler that does not exist.
    #[error("there is no handler {0:?}; the handlers are http, tls, pg_tls and proxy_proto")]
    Unknown(String),
    /// Handlers that do not go together.
    #[error("the handlers {} do not go together; see reference/services of the documentation", .0.join(" and "))]
    Combination(Vec<String>),
}

impl HandlerChain {
    /// The chain that a port's handlers mean; their order does not matter.
    ///
    /// # Errors
    /// [`InvalidHandlers`] for an unknown handler or an impossible combination.
    pub fn parse(handlers: &[String]) -> Result<Self, InvalidHandlers> {
        const HTTP: u8 = 1;
        const TLS: u8 = 2;
        const PG_TLS: u8 = 4;
        const PROXY_PROTO: u8 = 8;
        const TLS_HTTP: u8 = TLS | HTTP;
        const TLS_PROXY_PROTO: u8 = TLS | PROXY_PROTO;
        // Asked for each request: as bits, which take no memory.
        let mut set = 0;
        for handler in handlers {
            set |= match handler.as_str() {
                "http" => HTTP,
                "tls" => TLS,
                "pg_tls" => PG_TLS,
                "proxy_proto" => PROXY_PROTO,
                unknown => return Err(InvalidHandlers::Unknown(unknown.to_owned())),
            };
        }
        Ok(match set {
            0 => Self::Raw,
            HTTP => Self::Http,
            TLS_HTTP => Self::TlsHttp,
            TLS => Self::Tls,
            PG_TLS => Self::PgTls,
            PROXY_PROTO => Self::ProxyProto,
            TLS_PROXY_PROTO => Self::TlsProxyProto,
            _ => return Err(InvalidHandlers::Combination(handlers.to_vec())),
        })
    }
}

impl Service {
    /// Whether it carries TCP; a protocol that is not given counts as TCP.
    pub fn is_tcp(&self) -> bool {
        self.protocol.is_empty() || self.protocol.eq_ignore_ascii_case("tcp")
    }

    /// Its limits, defaults applied.
    pub fn limits(&self) -> Limits {
        let concurrency = self.concurrency.as_ref();
        Limits::new(concurrency.and_then(|c| c.soft_limit), concurrency.and_then(|c| c.hard_limit))
    }

    /// Whether limits count requests; connections otherwise.
    pub fn counts_requests(&self) -> bool {
        self.concurrency.as_ref().is_some_and(|c| c.kind == "requests")
    }

    /// Whether traffic may start a stopped Machine; true by default.
    pub fn starts_on_traffic(&self) -> bool {
        self.autostart.unwrap_or(true)
    }

    /// The port of this service that `port` falls on.
    pub fn port(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.range().contains(&port))
    }
}

impl MachineConfig {
    /// The TCP service that answers a public port: its index, itself, and the port's settings.
    pub fn tcp_service(&self, port: u16) -> Option<(usize, &Service, &Port)> {
        self.services
            .iter()
            .enumerate()
            .filter(|(_, service)| service.is_tcp())
            .find_map(|(index, service)| Some((index, service, service.port(port)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_recognized_in_any_order_and_nonsense_is_named() {
        let parse =
            |list: &[&str]| HandlerChain::parse(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]), Ok(HandlerChain::Raw));
        assert_eq!(parse(&["tls", "http"]), Ok(HandlerChain::TlsHttp));
        assert_eq!(parse(&["http", "tls"]), Ok(HandlerChain::TlsHttp));
        assert_eq!(parse(&["donuts"]), Err(InvalidHandlers::Unknown("donuts".into())));
        assert!(matches!(parse(&["pg_tls", "http"]), Err(InvalidHandlers::Combination(_))));
    }

    #[test]
    fn a_port_is_found_alone_or_in_a_range_and_an_empty_one_is_never() {
        let config: MachineConfig = serde_json::from_str(
            r#"{"services":[{"protocol":"udp","internal_port":1,"ports":[{"port":80}]},
                {"internal_port":8080,"ports":[{},{"start_port":100,"end_port":110}]}]}"#,
        )
        .unwrap();
        assert!(config.tcp_service(80).is_none(), "udp is not tcp");
        assert_eq!(config.tcp_service(105).unwrap().0, 1);
        assert!(config.tcp_service(111).is_none());
    }
}
