//! The tasks of a run that probe its process.

use std::time::Duration;

use skein_cluster::{Upstream, clock};
use tokio::sync::watch;

use crate::check::{CheckCore, Kind, Spec, Status};
use crate::probe::Prober;

/// Internal port to address, once known.
pub(crate) type Addresses = watch::Receiver<Option<Upstream>>;

/// The pause between looks whether a process accepts connections, in its time for that and after it.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Tells when a process accepts connections on all these ports, and before that, once, on which it does not
/// after the time `within` which it should (SPEC AUTO-5): whoever asks it then hears what is wrong, instead
/// of nothing.
pub(crate) async fn listens(
    ports: Vec<u16>,
    within: Duration,
    mut addresses: Addresses,
    mut resting: watch::Receiver<bool>,
    tell: impl Fn(Result<(), String>),
) {
    let Ok(upstream) = addresses.wait_for(Option::is_some).await.map(|upstream| upstream.clone()) else {
        return;
    };
    let deadline = tokio::time::Instant::now() + within;
    let knock = Prober::new(Kind::Tcp, LOOK.1);
    let (mut pause, mut late) = (LOOK.0, false);
    for port in ports {
        let Some(address) = upstream.as_ref().and_then(|upstream| upstream.address(port)) else { continue };
        // A connection to a process that waits is the kernel's doing.
        while !matches!(awake(&mut resting, knock.probe(address)).await, Some(Ok(_))) {
            if !late && tokio::time::Instant::now() >= deadline {
                (pause, late) = (LOOK.1, true);
                tell(Err(format!(
                    "nothing accepts connections for port {port} within {} ms of the start; its process has \
                     to listen on {address}, which the environment variables PORT and SKEIN_PORT_{port} \
                     say; see its log",
                    within.as_millis()
                )));
            }
            tokio::time::sleep(pause).await;
        }
    }
    tell(Ok(()));
}

/// Does `work` once the process does not wait; `None` if it is made to wait meanwhile.
async fn awake<T>(resting: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    if resting.wait_for(|resting| !resting).await.is_err() {
        // The run is over, and this task with it.
        std::future::pending::<()>().await;
    }
    tokio::select! {
        biased;
        _ = resting.wait_for(|resting| *resting) => None,
        done = work => Some(done),
    }
}

/// Probes as long as it is polled, except while its process waits; tells each change. `opened` turns once
/// the process accepts connections: then nobody waits for the end of a pause.
pub(crate) async fn check_on(
    spec: Spec,
    mut addresses: Addresses,
    mut resting: watch::Receiver<bool>,
    mut opened: watch::Receiver<bool>,
    tell: impl Fn(Status, String),
) {
    let upstream = match addresses.wait_for(Option::is_some).await {
        Ok(upstream) => upstream.clone(),
        // Its address never became known, so there is nothing to check.
        Err(_) => return,
    };
    let Some(address) = upstream.and_then(|upstream| upstream.address(spec.port)) else { return };
    let mut core = CheckCore::new(&spec, clock::now());
    let prober = Prober::new(spec.kind, spec.timeout);
    loop {
        // A probe that is under way when the process is made to wait says nothing.
        let Some(outcome) = awake(&mut resting, prober.probe(address)).await else {
            continue;
        };
        let before = (core.status().0, core.status().1.to_owned());
        let pause = core.probed(clock::now(), outcome);
        let (status, output) = core.status();
        if (status, output) != (before.0, before.1.as_str()) {
            tell(status, output.to_owned());
        }
        let pausing = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = opened.changed() => {}
            }
        };
        // After a suspension the next probe is due at once.
        awake(&mut resting, pausing).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

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
        tasks.spawn(check_on(
            spec(r#"{"type":"tcp"}"#),
            addresses,
            rests,
            watch::channel(false).1,
            move |status, _| {
                told.send(status).unwrap();
            },
        ));
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

    /// SPEC AUTO-5.
    #[tokio::test(start_paused = true)]
    async fn who_listens_late_is_told_of_twice_and_who_waits_is_not_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (resting, rests) = watch::channel(false);
        let (told, mut tells) = mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        let within = Duration::from_secs(30);
        tasks.spawn(listens(vec![8080], within, at(address), rests, move |heard| {
            told.send(heard).unwrap();
        }));
        let error = tells.recv().await.unwrap().unwrap_err();
        assert!(error.contains(&address.to_string()) && error.contains("30000 ms"), "{error}");
        resting.send_replace(true);
        let listener = TcpListener::bind(address).await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_secs(3600), tells.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        resting.send_replace(false);
        assert_eq!(tells.recv().await, Some(Ok(())));
        drop(listener);
    }
}
