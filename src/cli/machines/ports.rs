//! `--port`, as `fly machine run` takes it: `port[:internal port][/protocol[:handler…]]`.

use std::str::FromStr;

use skein_core::machine::{Concurrency, Port, Service};

/// One `--port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortArg {
    public: u16,
    internal: u16,
    protocol: String,
    handlers: Vec<String>,
}

/// What a `--port` should have looked like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write port[:internal port][/tcp[:handler…]], for example 80:8080/tcp:http or 443/tcp:tls:http")]
pub(crate) struct InvalidPort;

impl FromStr for PortArg {
    type Err = InvalidPort;
    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        let (ports, rest) = match text.split_once('/') {
            Some((ports, rest)) => (ports, Some(rest)),
            None => (text, None),
        };
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0).ok_or(InvalidPort);
        let (public, internal) = match ports.split_once(':') {
            Some((public, internal)) => (port(public)?, port(internal)?),
            None => (port(ports)?, 8080),
        };
        let mut words = rest.unwrap_or("tcp").split(':').map(str::to_owned);
        let protocol = words.next().filter(|protocol| protocol == "tcp" || protocol == "udp");
        let protocol = protocol.ok_or(InvalidPort)?;
        let mut handlers: Vec<String> = words.collect();
        if handlers.iter().any(String::is_empty) {
            return Err(InvalidPort);
        }
        if rest.is_none() {
            // What these ports carry everywhere.
            handlers = match public {
                80 => vec!["http".into()],
                443 => vec!["tls".into(), "http".into()],
                _ => vec![],
            };
        }
        Ok(Self { public, internal, protocol, handlers })
    }
}

/// The services that the ports make: one for each protocol and internal port.
pub(crate) fn services(ports: &[PortArg]) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for arg in ports {
        let port = Port { port: Some(arg.public), handlers: arg.handlers.clone(), ..Port::default() };
        let same = |service: &&mut Service| {
            service.internal_port == arg.internal && service.protocol == arg.protocol
        };
        match services.iter_mut().find(same) {
            Some(service) => service.ports.push(port),
            None => services.push(Service {
                protocol: arg.protocol.clone(),
                internal_port: arg.internal,
                ports: vec![port],
                concurrency: Some(Concurrency { kind: "requests".into(), ..Concurrency::default() }),
                ..Service::default()
            }),
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(text: &str) -> PortArg {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_reads_as_fly_reads_it() {
        let full = arg("443:3000/tcp:tls:http");
        assert_eq!(
            (full.public, full.internal, full.handlers),
            (443, 3000, vec!["tls".into(), "http".into()])
        );
        assert_eq!(arg("80").handlers, ["http"]);
        assert_eq!((arg("80").internal, arg("443").handlers.len()), (8080, 2));
        assert!(arg("5432/tcp").handlers.is_empty(), "no handler was asked for");
        for bad in ["", "x", "0", "80:", "80:0", "80/sctp", "80/tcp:", "99999", "80/"] {
            assert!(bad.parse::<PortArg>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_with_one_internal_port_are_one_service() {
        let services = services(&[arg("80:3000"), arg("443:3000"), arg("8080:9000/tcp:http")]);
        assert_eq!(services.len(), 2);
        assert_eq!(services[0].ports.len(), 2);
        assert_eq!(services[1].internal_port, 9000);
    }
}
