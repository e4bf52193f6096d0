//! Which app a connection or request is for: by dedicated address, else by host name; and what its
//! port does (SPEC PUB-3, PUB-4, PUB-5, PUB-7).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use http::header::HOST;
use http::uri::{Authority, Uri};
use skein_core::facts::{AddressKind, FactKey};
use skein_core::machine::Port;
use skein_core::service::HandlerChain;
use skein_core::snapshot::{AppView, Snapshot};

use crate::reply::Reply;

/// The host that a request is for, in lower case, without port and final dot. An absolute target
/// wins over `Host` (RFC 9112 section 3.2.2).
///
/// # Errors
/// [`Reply::BadHost`] when there is none, more than one, or an invalid one.
pub(crate) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Cow<'a, str>, Reply> {
    let mut given = headers.get_all(HOST).iter();
    let header = match (given.next(), given.next()) {
        (Some(_), Some(_)) => return Err(Reply::BadHost),
        (Some(host), None) => Some(host.as_bytes()),
        (None, _) => None,
    };
    if let (None, Some(host)) = (uri.authority(), header.and_then(plain)) {
        return Ok(Cow::Borrowed(host));
    }
    let header = header.map(Authority::try_from).transpose().map_err(|_| Reply::BadHost)?;
    let authority = uri.authority().cloned().or(header).ok_or(Reply::BadHost)?;
    // What names a user is refused, and not only cleaned: the Machine gets it as Host.
    if authority.as_str().contains('@') {
        return Err(Reply::BadHost);
    }
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if authority.host().is_empty() || (!matches!(port, "" | ":") && authority.port().is_none()) {
        return Err(Reply::BadHost);
    }
    Ok(Cow::Owned(authority.host().trim_end_matches('.').to_ascii_lowercase()))
}

/// The host of what most clients send: a name in lower case, perhaps a port.
fn plain(given: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(given).ok()?;
    let (host, port) = text.split_once(':').unwrap_or((text, "80"));
    let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let valid = !host.is_empty() && !host.ends_with('.') && host.bytes().all(named);
    (valid && port.parse::<u16>().is_ok() && !port.starts_with('+')).then_some(host)
}

/// The app that a request is for.
///
/// # Errors
/// [`Reply::UnknownHost`], without telling whether such an app exists elsewhere.
pub(crate) fn app<'s>(snapshot: &'s Snapshot, public: IpAddr, host: &str) -> Result<&'s Arc<AppView>, Reply> {
    let unknown = || Reply::UnknownHost(host.chars().take(253).collect());
    if let Some(address) = snapshot.registry.app_at(public) {
        return snapshot.apps.get(&address.app).ok_or_else(unknown);
    }
    let settings = snapshot.registry.settings().ok_or_else(unknown)?;
    let name = host
        .strip_suffix(settings.base_domain.as_str())
        .and_then(|rest| rest.strip_suffix('.'))
        .ok_or_else(unknown)?;
    let app = snapshot.app_by_name(name).ok_or_else(unknown)?;
    let here = snapshot.registry.fact(&FactKey::Address(public, app.app.id)).is_some();
    here.then_some(app).ok_or_else(unknown)
}

/// What an app's port does, as the first of its Machines says that has the port.
pub(crate) fn service(app: &AppView, port: u16) -> Option<(HandlerChain, &Port)> {
    app.machines.values().find_map(|machine| {
        let (_, _, settings) = machine.config.as_ref()?.tcp_service(port)?;
        Some((HandlerChain::parse(&settings.handlers).ok()?, settings))
    })
}

/// What a public address and port does; `None` when nothing listens there (SPEC PUB-4). On a shared
/// address the chain of any app decides, and the host name later.
pub(crate) fn chain(snapshot: &Snapshot, public: SocketAddr) -> Option<HandlerChain> {
    let of =
        |app| snapshot.apps.get(&app).and_then(|app| service(app, public.port())).map(|(chain, _)| chain);
    if let Some(address) = snapshot.registry.app_at(public.ip()) {
        return of(address.app);
    }
    let here = |address: &&Arc<skein_core::facts::Address>| {
        address.ip == public.ip() && address.kind == AddressKind::SharedV4
    };
    // SPEC PUB-2: raw TCP is not for shared addresses.
    let routed_by_name = |chain: &HandlerChain| {
        matches!(chain, HandlerChain::Http | HandlerChain::TlsHttp | HandlerChain::Tls)
    };
    snapshot.registry.addresses().filter(here).filter_map(|address| of(address.app)).find(routed_by_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn host_of(uri: &str, hosts: &[&'static str]) -> Result<String, Reply> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        host(&uri.parse().unwrap(), &headers).map(Cow::into_owned)
    }

    #[test]
    fn a_request_names_one_host_and_case_port_and_final_dot_do_not_matter() {
        assert_eq!(host_of("/", &["Hello.LocalHost.:8080"]).unwrap(), "hello.localhost");
        assert_eq!(host_of("http://a.localhost/x", &["b.localhost"]).unwrap(), "a.localhost");
        assert_eq!(host_of("/", &["hello.localhost:8080"]).unwrap(), "hello.localhost");
        for bad in [&[][..], &["a", "a"], &["a b"], &["u@a"], &[""], &["a:x"], &["a:99999999"], &[":80"]] {
            assert_eq!(host_of("/", bad), Err(Reply::BadHost), "{bad:?}");
        }
        assert_eq!(host_of("http://u@a.localhost/", &["a.localhost"]), Err(Reply::BadHost));
    }
}
