//! Carrying out one probe of a check.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::any_certificate::AnyCertificate;
use crate::check::{Failure, Kind, Tls};

/// The most bytes of a response's body that are read for the check's output.
const MAX_BODY: usize = 4 << 10;

/// What carries out the probes of one check.
pub(crate) struct Prober {
    kind: Kind,
    timeout: Duration,
    connector: Option<TlsConnector>,
}

impl Prober {
    /// Probes that may take so long. HTTPS servers are believed whom the web believes.
    pub(crate) fn new(kind: Kind, timeout: Duration) -> Self {
        Self::with_roots(kind, timeout, || webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect())
    }

    fn with_roots(kind: Kind, timeout: Duration, roots: impl FnOnce() -> RootCertStore) -> Self {
        let connector = match &kind {
            Kind::Http { tls: Some(tls), .. } => Some(connector(tls, roots)),
            Kind::Http { tls: None, .. } | Kind::Tcp => None,
        };
        Self { kind, timeout, connector }
    }

    /// Probes `address` once.
    pub(crate) async fn probe(&self, address: SocketAddr) -> Result<String, Failure> {
        let deadline = Instant::now() + self.timeout;
        let late = |_| Failure::Bad(format!("no answer within {} ms", self.timeout.as_millis()));
        let stream = timeout_at(deadline, TcpStream::connect(address))
            .await
            .map_err(late)?
            .map_err(|error| Failure::NotListening(format!("connect to {address}: {error}")))?;
        let Kind::Http { method, path, tls, .. } = &self.kind else {
            return Ok(format!("connect to {address}: ok"));
        };
        let bad = |what: &str| Failure::Bad(format!("{method} {path}: {what}"));
        let (Some(connector), Some(tls)) = (&self.connector, tls) else {
            return self.ask(stream, address, deadline).await;
        };
        let name = tls.name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
        let shown = name.to_str().into_owned();
        let secured = timeout_at(deadline, connector.connect(name, stream)).await.map_err(late)?;
        let secured = secured.map_err(|error| bad(&format!("TLS with {shown}: {error}")))?;
        self.ask(secured, address, deadline).await
    }

    async fn ask<S>(&self, stream: S, address: SocketAddr, deadline: Instant) -> Result<String, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Kind::Http { method, path, headers, .. } = &self.kind else {
            return Ok(String::new());
        };
        let bad = |what: &str| Failure::Bad(format!("{method} {path}: {what}"));
        let late = |_| Failure::Bad(format!("no answer within {} ms", self.timeout.as_millis()));
        // Dropped with this future, which ends the connection.
        let mut tasks = JoinSet::new();
        let mut request = http::Request::builder()
            .method(method.as_str())
            .uri(path.as_str())
            .header(http::header::USER_AGENT, "skein-check");
        if !headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
            request = request.header(http::header::HOST, address.to_string());
        }
        for header in headers {
            for value in &header.values {
                request = request.header(&header.name, value);
            }
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| bad(&error.to_string()))?;
        let answering = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tasks.spawn(connection);
            sender.send_request(request).await
        };
        let answered = timeout_at(deadline, answering).await.map_err(late)?;
        let response = answered.map_err(|error| bad(&error.to_string()))?;
        let status = response.status();
        // The body is only shown; one that is long, breaks off or does not end changes no verdict.
        let body = Limited::new(response.into_body(), MAX_BODY).collect();
        let body = timeout_at(deadline, body).await.ok().and_then(Result::ok).map(|body| body.to_bytes());
        let body = body.map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
        let seen = format!("{status}: {body}");
        if status.is_success() { Ok(seen) } else { Err(bad(&seen)) }
    }
}

fn connector(tls: &Tls, roots: impl FnOnce() -> RootCertStore) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("invariant: ring knows TLS 1.2 and 1.3");
    let mut config = if tls.verify {
        config.with_root_certificates(roots()).with_no_client_auth()
    } else {
        let any = Arc::new(AnyCertificate::new(provider));
        config.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that answers each connection with these bytes.
    async fn server(answer: &'static str) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap_or(0);
                assert!(read == 0 || head[0] == 0x16 || head.starts_with(b"GET /up"), "{:?}", &head[..read]);
                stream.write_all(answer.as_bytes()).await.unwrap_or(());
            }
        });
        (address, tasks)
    }

    fn http() -> Kind {
        Kind::Http { method: "GET".into(), path: "/up".into(), headers: vec![], tls: None }
    }

    async fn probe(kind: &Kind, address: SocketAddr, timeout: Duration) -> Result<String, Failure> {
        Prober::new(kind.clone(), timeout).probe(address).await
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    /// SPEC CHK-3: 2xx only, redirects fail.
    #[tokio::test]
    async fn only_a_status_of_2xx_passes() {
        let (ok, _ok) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(probe(&http(), ok, PATIENCE).await.is_ok());
        for answer in [
            "HTTP/1.1 301 Moved\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            "garbage",
        ] {
            let (address, _server) = server(answer).await;
            assert!(matches!(probe(&http(), address, PATIENCE).await, Err(Failure::Bad(_))), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_changes_no_verdict() {
        let (endless, _server) = server("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nwait").await;
        assert!(probe(&http(), endless, Duration::from_millis(300)).await.is_ok());
    }

    /// An HTTPS server for `name` that answers 200, and who signed its certificate.
    async fn https(name: &str) -> (SocketAddr, RootCertStore, JoinSet<()>) {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not believe it goes away.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let read = stream.read(&mut [0; 1024]).await.unwrap_or(0);
                if read > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap_or(());
                }
            }
        });
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        (address, roots, tasks)
    }

    /// SPEC CHK-3.
    #[tokio::test]
    async fn an_https_server_is_believed_by_its_name_and_who_signed_it_unless_that_is_left_out() {
        let (address, roots, _server) = https("app.test").await;
        let probe = async |name: Option<&'static str>, verify: bool, roots: Option<RootCertStore>| {
            let name = name.map(|name| ServerName::try_from(name).unwrap());
            let tls = Some(Tls { name, verify });
            let kind = Kind::Http { method: "GET".into(), path: "/".into(), headers: vec![], tls };
            let prober = match roots {
                Some(roots) => Prober::with_roots(kind, PATIENCE, || roots),
                None => Prober::new(kind, PATIENCE),
            };
            prober.probe(address).await
        };
        assert!(probe(Some("app.test"), true, Some(roots.clone())).await.is_ok());
        for (name, roots) in
            [(Some("other.test"), Some(roots.clone())), (None, Some(roots)), (Some("app.test"), None)]
        {
            let Err(Failure::Bad(why)) = probe(name, true, roots).await else { panic!("{name:?}") };
            assert!(why.contains("TLS with") && why.contains("certificate"), "{why}");
        }
        for name in [Some("other.test"), None] {
            assert!(probe(name, false, None).await.is_ok(), "{name:?}");
        }
        // A server that speaks no TLS.
        let (plain, _plain) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let tls = Some(Tls { name: None, verify: false });
        let kind = Kind::Http { method: "GET".into(), path: "/up".into(), headers: vec![], tls };
        assert!(matches!(Prober::new(kind, PATIENCE).probe(plain).await, Err(Failure::Bad(_))));
    }

    #[tokio::test]
    async fn nobody_listening_is_told_apart_and_silence_ends_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = listener.local_addr().unwrap();
        assert!(probe(&Kind::Tcp, silent, PATIENCE).await.is_ok());
        let short = Duration::from_millis(50);
        assert!(matches!(probe(&http(), silent, short).await, Err(Failure::Bad(_))));
        drop(listener);
        assert!(matches!(probe(&Kind::Tcp, silent, PATIENCE).await, Err(Failure::NotListening(_))));
    }
}
