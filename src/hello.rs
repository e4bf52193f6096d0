//! The sample app (`skein hello`): an HTTP/1.1 server in a process of its own, started by the
//! driver like any other command. It says where it runs and what reached it, and does on request
//! what real apps do by accident: be slow, fail, crash.
//!
//! It knows nothing of Skein but what every Machine gets: the environment (SPEC RUN-2) and headers.

mod body;
mod routes;
mod websocket;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use routes::Answer;

/// Where it listens when no `PORT` is set; the `internal_port` of the sample app's service.
pub const INTERNAL_PORT: u16 = 8080;

/// What the app knows of itself.
#[derive(Debug, Default)]
struct Hello {
    app: Option<String>,
    machine: Option<String>,
    region: Option<String>,
    primary_region: Option<String>,
    /// Set by `POST /health?fail=true`.
    failing: AtomicBool,
}

/// Serves until SIGINT or SIGTERM, then finishes the requests in flight and exits 0.
pub fn main() -> ExitCode {
    #[expect(
        clippy::disallowed_methods,
        reason = "an app's configuration is its environment; read once, here"
    )]
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let hello = Hello {
        app: env("FLY_APP_NAME"),
        machine: env("FLY_MACHINE_ID"),
        region: env("FLY_REGION"),
        primary_region: env("PRIMARY_REGION"),
        failing: AtomicBool::new(false),
    };
    // With PORT the proxy reaches the process over loopback; without, it has a network of its own
    // and listens on all of it, IPv4 included.
    let address = match env("PORT").map(|port| port.parse::<u16>()) {
        None => SocketAddr::from((Ipv6Addr::UNSPECIFIED, INTERNAL_PORT)),
        Some(Ok(port)) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Some(Err(_)) => {
            eprintln!("hello: PORT is not a port; set it to a number from 1 to 65535, or leave it out");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(hello, address))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hello: cannot serve on {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(hello: Hello, address: SocketAddr) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(address).await?;
    eprintln!("hello: listening on {}", listener.local_addr()?);
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    serve(Arc::new(hello), listener, stop).await;
    Ok(())
}

/// Accepts until `stop`, then waits for the requests in flight.
async fn serve(hello: Arc<Hello>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(Arc::clone(&hello), stream, stopped.clone()));
                }
                // Out of descriptors, or a client that gave up. The pause keeps the first of the
                // two from being a busy loop.
                Err(error) => {
                    eprintln!("hello: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            // A finished connection; joined so that the set does not grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    stopping.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn connection(hello: Arc<Hello>, stream: TcpStream, mut stopped: watch::Receiver<bool>) {
    // Small answers must not wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("hello: nodelay: {error}");
    }
    let upgrade = Mutex::new(None);
    let service = service_fn(|request| async {
        match routes::answer(&hello, request).await {
            Answer::Response(response) => Ok::<_, Infallible>(response),
            Answer::WebSocket(response, on) => {
                *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(on);
                Ok(response)
            }
            Answer::Crash => std::process::exit(1),
        }
    });
    let http = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is not worth a word.
    {
        let mut http = pin!(http.with_upgrades());
        let stops = tokio::select! {
            _broken_off = http.as_mut() => false,
            _ = stopped.wait_for(|stopped| *stopped) => true,
        };
        if stops {
            http.as_mut().graceful_shutdown();
            let _broken_off = http.await;
        }
    }
    let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(upgrade) = upgrade
        && let Ok(upgraded) = upgrade.await
    {
        let _broken_off = websocket::echo(TokioIo::new(upgraded), stopped).await;
    }
}
