use proptest::prelude::*;

use super::*;

fn config(json: &str) -> MachineConfig {
    serde_json::from_str(json).unwrap()
}

fn one(json: &str) -> Result<Spec, MachineError> {
    specs(&config(&format!(r#"{{"services":[{{"internal_port":8080,"checks":[{json}]}}]}}"#)))
        .map(|mut specs| specs.remove(0))
}

/// SPEC CHK-3.
#[test]
fn defaults_are_applied_and_durations_are_clamped() {
    let spec = one(r#"{"type":"http"}"#).unwrap();
    assert_eq!((spec.interval.as_secs(), spec.timeout.as_secs(), spec.grace.as_secs()), (15, 2, 1));
    assert_eq!(spec.kind, Kind::Http { method: "GET".into(), path: "/".into(), headers: vec![], tls: None });
    assert_eq!((spec.name.as_str(), spec.port, spec.routing), ("servicecheck-00-http-8080", 8080, true));
    let spec =
        one(r#"{"type":"tcp","port":9,"interval":"10ms","timeout":"5m","grace_period":"0s"}"#).unwrap();
    assert_eq!((spec.interval, spec.timeout, spec.grace), (RANGE.0, RANGE.1, Duration::ZERO));
    assert_eq!(spec.port, 9);
    let spec = one(r#"{"type":"tcp","grace_period":"10ms"}"#).unwrap();
    assert_eq!(spec.grace, RANGE.0);
}

#[test]
fn what_can_not_be_probed_is_refused_by_name() {
    for bad in [
        r#"{"type":"donut"}"#,
        r#"{"type":"http","path":"no-slash"}"#,
        r#"{"type":"http","method":"A B"}"#,
        r#"{"type":"http","headers":[{"name":"a b","values":[]}]}"#,
        r#"{"type":"http","headers":[{"name":"a","values":["\n"]}]}"#,
        r#"{"type":"http","protocol":"gopher"}"#,
        r#"{"type":"http","protocol":"https","tls_server_name":"a b"}"#,
    ] {
        assert_eq!(one(bad).unwrap_err().status(), 400, "{bad}");
    }
    assert_eq!(specs(&config(r#"{"checks":{"a":{"type":"tcp"}}}"#)).unwrap_err().status(), 400);
}

/// SPEC CHK-3.
#[test]
fn an_https_server_has_the_name_that_was_given_or_that_of_the_host_header() {
    let tls = |more: &str| match one(&format!(r#"{{"type":"http","protocol":"https"{more}}}"#)).unwrap().kind
    {
        Kind::Http { tls, .. } => tls.unwrap(),
        Kind::Tcp => panic!("it is HTTP"),
    };
    let named = |name: &'static str| Some(ServerName::try_from(name).unwrap());
    assert_eq!(tls(""), Tls { name: None, verify: true });
    let host = r#","headers":[{"name":"Host","values":["a.test:8443"]}]"#;
    assert_eq!(tls(host).name, named("a.test"));
    assert_eq!(tls(&format!(r#"{host},"tls_server_name":"b.test""#)).name, named("b.test"));
    assert!(!tls(r#","tls_skip_verify":true"#).verify);
}

/// SPEC CHK-2.
#[test]
fn top_level_checks_do_not_decide_routing() {
    let specs = specs(&config(r#"{"checks":{"a":{"type":"tcp","port":7}}}"#)).unwrap();
    assert_eq!((specs[0].name.as_str(), specs[0].routing), ("a", false));
}

fn now() -> Instant {
    skein_cluster::clock::now()
}

/// SPEC CHK-1, CHK-3.
#[test]
fn a_failure_counts_after_the_grace_period_and_a_pass_counts_at_once() {
    let spec = one(r#"{"type":"tcp","grace_period":"10s","interval":"5s"}"#).unwrap();
    let start = now();
    let mut core = CheckCore::new(&spec, start);
    let not_yet = || Err(Failure::NotListening("connection refused".into()));
    assert_eq!(core.probed(start, not_yet()), FIRST_PAUSE);
    assert_eq!(core.probed(start, not_yet()), FIRST_PAUSE * 2);
    assert_eq!(core.status().0, Status::Unknown);
    assert_eq!(core.probed(start, Ok("ok".into())), spec.interval);
    assert_eq!(core.status(), (Status::Passing, "ok"));
    core.probed(start + Duration::from_secs(9), Err(Failure::Bad("500".into())));
    assert_eq!(core.status().0, Status::Passing, "still in grace");
    core.probed(start + Duration::from_secs(10), Err(Failure::Bad("500".into())));
    assert_eq!(core.status(), (Status::Critical, "500"));
    core.probed(start + Duration::from_secs(15), Ok("ok".into()));
    assert_eq!(core.status().0, Status::Passing);
}

proptest! {
    #[test]
    fn after_grace_the_status_is_that_of_the_last_probe_and_pauses_stay_in_bounds(outcomes: Vec<(bool, bool)>) {
        let spec = one(r#"{"type":"tcp"}"#).unwrap();
        let start = now();
        let mut core = CheckCore::new(&spec, start);
        let mut at = start + spec.grace;
        for (passed, listening) in outcomes {
            let outcome = match (passed, listening) {
                (true, _) => Ok(String::new()),
                (false, true) => Err(Failure::Bad(String::new())),
                (false, false) => Err(Failure::NotListening(String::new())),
            };
            let pause = core.probed(at, outcome);
            prop_assert!(pause >= FIRST_PAUSE && pause <= spec.interval);
            prop_assert_eq!(core.status().0 == Status::Passing, passed);
            at += pause;
        }
    }
}
