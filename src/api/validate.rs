//! What a configuration must fulfil before a Machine is made of it (SPEC HND-2, SVC-3, SVC-6,
//! RUN-3): a chain of handlers that this version does not serve is refused here, never served
//! halfway.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use skein_core::machine::{Check, MachineConfig, Port, Service};
use skein_core::service::{HandlerChain, InvalidHandlers};
use skein_machine::MachineError;
use skein_machine::plan::Plan;

use super::error::ApiError;

/// The image shown for a Machine that runs a command.
const COMMAND: &str = "skein/command";
/// The image shown for a server that already runs.
const EXTERNAL: &str = "skein/external";

/// What is wrong with a configuration; its author caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidConfig {
    /// Nothing that could be run.
    #[error(transparent)]
    Run(#[from] MachineError),
    /// Handlers that make no chain.
    #[error("{at}: {cause}")]
    Handlers {
        /// Where it stands.
        at: String,
        /// Why.
        cause: InvalidHandlers,
    },
    /// Something that this version does not serve.
    #[error("{at}: {what} not provided by this version of Skein; only the http handler is")]
    NotServed {
        /// Where it stands.
        at: String,
        /// What it is.
        what: &'static str,
    },
    /// Anything else, in words.
    #[error("{at}: {problem}")]
    Problem {
        /// Where it stands.
        at: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl From<InvalidConfig> for ApiError {
    fn from(error: InvalidConfig) -> Self {
        let text = format!("invalid machine config: {error}");
        match error {
            InvalidConfig::Run(error) => error.into(),
            InvalidConfig::NotServed { .. } => Self::new(axum::http::StatusCode::NOT_IMPLEMENTED, text),
            InvalidConfig::Handlers { .. } | InvalidConfig::Problem { .. } => Self::unprocessable(text),
        }
    }
}

fn problem(at: impl Into<String>, problem: impl Into<String>) -> InvalidConfig {
    InvalidConfig::Problem { at: at.into(), problem: problem.into() }
}

/// Checks a configuration and fills in the image that its driver goes by.
pub(crate) fn prepare(config: &mut MachineConfig) -> Result<(), InvalidConfig> {
    runnable(config)?;
    let mut claimed: Vec<(bool, RangeInclusive<u16>)> = Vec::new();
    for (index, service) in config.services.iter().enumerate() {
        check_service(service, &format!("services[{index}]"), &mut claimed)?;
    }
    for (name, check) in &config.checks {
        check_check(check, &format!("checks.{name}"))?;
    }
    Ok(())
}

/// Names the driver by the image, where the author did not.
fn runnable(config: &mut MachineConfig) -> Result<(), InvalidConfig> {
    match Plan::of(config)? {
        Plan::External(_) => config.image = EXTERNAL.to_owned(),
        Plan::Process { .. } if config.image.is_empty() => config.image = COMMAND.to_owned(),
        Plan::Process { .. } => {}
    }
    Ok(())
}

fn check_service(
    service: &Service,
    at: &str,
    claimed: &mut Vec<(bool, RangeInclusive<u16>)>,
) -> Result<(), InvalidConfig> {
    let tcp = service.is_tcp();
    if !tcp && !service.protocol.eq_ignore_ascii_case("udp") {
        let wrong = format!("{:?} is neither \"tcp\" nor \"udp\"", service.protocol);
        return Err(problem(format!("{at}.protocol"), wrong));
    }
    if !tcp && !service.ports.is_empty() {
        return Err(InvalidConfig::NotServed { at: at.to_owned(), what: "UDP services are" });
    }
    if service.internal_port == 0 {
        return Err(problem(format!("{at}.internal_port"), "a port from 1 to 65535 is needed"));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let at = format!("{at}.ports[{index}]");
        check_port(port, &at)?;
        let range = port.range();
        let clash = |(other_tcp, other): &&(bool, RangeInclusive<u16>)| {
            *other_tcp == tcp && other.start() <= range.end() && range.start() <= other.end()
        };
        if let Some((_, other)) = claimed.iter().find(clash) {
            let wrong =
                format!("port {} is claimed twice for one protocol", other.start().max(range.start()));
            return Err(problem(at, wrong));
        }
        claimed.push((tcp, range));
    }
    for (index, check) in service.checks.iter().enumerate() {
        check_check(check, &format!("{at}.checks[{index}]"))?;
    }
    Ok(())
}

fn check_port(port: &Port, at: &str) -> Result<(), InvalidConfig> {
    if port.port == Some(0) || port.range().is_empty() {
        return Err(problem(at, "give port, or start_port and end_port in this order"));
    }
    let chain = HandlerChain::parse(&port.handlers)
        .map_err(|cause| InvalidConfig::Handlers { at: format!("{at}.handlers"), cause })?;
    let handlers: BTreeSet<&str> = port.handlers.iter().map(String::as_str).collect();
    if port.force_https && !handlers.contains("http") {
        return Err(problem(format!("{at}.force_https"), "it needs the http handler on the same port"));
    }
    let not_served = |what| Err(InvalidConfig::NotServed { at: format!("{at}.handlers"), what });
    match chain {
        HandlerChain::Http | HandlerChain::TlsHttp => Ok(()),
        HandlerChain::Raw => not_served("ports without a handler are"),
        HandlerChain::Tls => not_served("tls without http is"),
        HandlerChain::PgTls => not_served("pg_tls is"),
        HandlerChain::ProxyProto | HandlerChain::TlsProxyProto => not_served("proxy_proto is"),
    }
}

fn check_check(check: &Check, at: &str) -> Result<(), InvalidConfig> {
    match check.kind.as_str() {
        "http" | "tcp" => Ok(()),
        other => Err(problem(format!("{at}.type"), format!("{other:?} is neither \"http\" nor \"tcp\""))),
    }
}

#[cfg(test)]
mod tests;
