//! The tasks of a run that probe its process.

use skein_cluster::{Upstream, clock};
use tokio::sync::watch;

use crate::check::{CheckCore, Spec, Status};
use crate::probe::probe;

/// Internal port to address, once known.
pub(crate) type Addresses = watch::Receiver<Option<Upstream>>;

/// Probes as long as it is polled, except while its process waits; tells each change.
pub(crate) async fn check_on(
    spec: Spec,
    mut addresses: Addresses,
    mut resting: watch::Receiver<bool>,
    tell: impl Fn(Status, String),
) {
    let upstream = match addresses.wait_for(Option::is_some).await {
        Ok(upstream) => upstream.clone(),
        // Its address never became known, so there is nothing to check.
        Err(_) => return,
    };
    let Some(address) = upstream.and_then(|upstream| upstream.address(spec.port)) else { return };
    let mut core = CheckCore::new(&spec, clock::now());
    // Its sender is gone only with the run, and this with it.
    while resting.wait_for(|resting| !resting).await.is_ok() {
        let checking = async {
            loop {
                let outcome = probe(&spec.kind, address, spec.timeout).await;
                let before = (core.status().0, core.status().1.to_owned());
                let pause = core.probed(clock::now(), outcome);
                let (status, output) = core.status();
                if (status, output) != (before.0, before.1.as_str()) {
                    tell(status, output.to_owned());
                }
                tokio::time::sleep(pause).await;
            }
        };
        let mut rests = resting.clone();
        tokio::select! {
            biased;
            // A probe that is under way asks somebody who will not answer.
            _ = rests.wait_for(|resting| *resting) => {}
            () = checking => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    fn spec(check: &str) -> Spec {
        let json = format!(r#"{{"services":[{{"internal_port":8080,"checks":[{check}]}}]}}"#);
        crate::check::specs(&serde_json::from_str(&json).unwrap()).unwrap().remove(0)
    }

    fn at(address: SocketAddr) -> Addresses {
        watch::channel(Some(Upstream::Loopback(BTreeMap::from([(8080, address)])))).1
    }

    /// SPEC AUTO-3. The kernel takes connections for a process that waits, so whoever probed it would learn
    /// nothing.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_probed_while_its_process_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = at(listener.local_addr().unwrap());
        let (resting, rests) = watch::channel(true);
        let (told, mut tells) = mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(check_on(spec(r#"{"type":"tcp"}"#), addresses, rests, move |status, _| {
            told.send(status).unwrap();
        }));
        // An hour of the paused clock.
        let quiet = tokio::time::timeout(Duration::from_secs(3600), tells.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        resting.send_replace(false);
        assert_eq!(tells.recv().await, Some(Status::Passing), "then at once");
        resting.send_replace(true);
        drop(listener);
        let quiet = tokio::time::timeout(Duration::from_secs(3600), tells.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
}
