//! The launcher with real processes that are no nodes (SPEC TB-1).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::time::Duration;

use axum::Router;
use skein_testbed::{Front, Life, Testbed, TestbedError};

#[test]
fn fake_node() {
    fake::serve();
}

async fn testbed(dir: &tempfile::TempDir, regions: &str) -> Testbed {
    let program = fake::program(dir.path(), "fake_node");
    fake::launch(dir.path(), &program, regions).await.unwrap()
}

fn alive(pid: u32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), None).is_ok()
}

fn pids(testbed: &Testbed) -> Vec<u32> {
    testbed.describe().nodes.iter().map(|node| node.pid).collect()
}

async fn get(testbed: &Testbed, path: &str, token: &str) -> (u16, serde_json::Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(format!("{}{path}", testbed.api_url())).bearer_auth(token);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_launched_testbed_is_described_in_its_directory_and_down_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad:2,lhr").await;
    let described = testbed.dir().read().unwrap().unwrap();
    assert_eq!(described, testbed.describe());
    let names: Vec<&str> = described.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["iad-1", "iad-2", "lhr-1"]);
    assert_eq!(described.api.token, fake::TOKEN);
    let pids = pids(&testbed);
    assert!(pids.iter().all(|pid| alive(*pid)));
    testbed.down().await.unwrap();
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert!(!testbed.dir().path().exists());
}

#[tokio::test]
async fn dropping_the_launcher_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad,lhr").await;
    let pids = pids(&testbed);
    drop(testbed);
    assert!(pids.iter().all(|pid| !alive(*pid)));
}

#[tokio::test]
async fn a_second_launch_of_the_same_name_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = testbed(&dir, "iad").await;
    let program = dir.path().join("program");
    let error = fake::launch(dir.path(), &program, "iad").await.unwrap_err().to_string();
    assert!(error.contains("skein down --name default"), "{error}");
    assert!(alive(pids(&first)[0]));
}

#[tokio::test]
async fn a_node_that_ends_while_it_starts_is_an_error_with_the_end_of_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let program = fake::script(dir.path(), "echo 'the region is full' >&2; exit 3");
    let error = fake::launch(dir.path(), &program, "iad,lhr").await.unwrap_err();
    assert!(matches!(error, TestbedError::Died { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("iad-1 exited with status 3") && text.contains("the region is full"), "{text}");
}

#[tokio::test]
async fn the_front_answers_while_any_node_lives() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad,lhr").await;
    let _front = Front::serve(&testbed, Router::new()).unwrap();
    assert_eq!(get(&testbed, "/skein/v1/nodes", fake::TOKEN).await.1.as_array().unwrap().len(), 2);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let big = "x".repeat(1 << 20);
    let echo = client.post(format!("{}/v1/echo", testbed.api_url())).body(big.clone());
    assert_eq!(echo.send().await.unwrap().text().await.unwrap(), big);

    testbed.kill("iad-1").await.unwrap();
    assert_eq!(get(&testbed, "/skein/v1/nodes", fake::TOKEN).await.0, 200);
    testbed.pause("lhr-1").await.unwrap();
    let (status, body) = get(&testbed, "/skein/v1/nodes", fake::TOKEN).await;
    assert_eq!(status, 503);
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("iad-1 was killed by SIGKILL") && error.contains("lhr-1 is paused"), "{error}");
    testbed.resume("lhr-1").await.unwrap();
    assert_eq!(get(&testbed, "/skein/v1/nodes", fake::TOKEN).await.0, 200);
}

#[tokio::test]
async fn the_testbeds_own_paths_need_the_operators_token() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad").await;
    let _front = Front::serve(&testbed, Router::new()).unwrap();
    let (status, described) = get(&testbed, "/skein/v1/testbed", fake::TOKEN).await;
    assert_eq!((status, described["name"].as_str()), (200, Some("default")));
    for path in ["/skein/v1/testbed", "/skein/v1/testbed/traces/x", "/skein/v1/testbed/nothing"] {
        assert_eq!(get(&testbed, path, "skt_other").await.0, 401, "{path}");
    }
    assert_eq!(get(&testbed, "/skein/v1/testbed/nothing", fake::TOKEN).await.0, 404);
    assert_eq!(get(&testbed, "/skein/v1/testbed/traces/x", fake::TOKEN).await.0, 404);
}

#[tokio::test]
async fn a_dead_node_stays_dead_until_it_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad,lhr").await;
    testbed.kill("lhr-1").await.unwrap();
    let node = |testbed: &Testbed| testbed.nodes().into_iter().nth(1).unwrap();
    assert_eq!(node(&testbed).life, Life::Gone("was killed by SIGKILL".into()));
    for refused in [testbed.kill("lhr-1").await, testbed.pause("lhr-1").await] {
        assert!(refused.unwrap_err().to_string().contains("skein node restart lhr-1"));
    }
    let before = pids(&testbed)[1];
    testbed.restart("lhr-1").await.unwrap();
    assert_ne!(pids(&testbed)[1], before);
    assert!(node(&testbed).ready);
    assert_eq!(testbed.dir().read().unwrap().unwrap(), testbed.describe(), "the new process is told");
    let error = testbed.restart("syd-1").await.unwrap_err().to_string();
    assert!(error.contains("iad-1, lhr-1"), "{error}");
}

#[tokio::test]
async fn a_live_node_and_a_paused_one_are_restarted_too() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad").await;
    for round in 0..2 {
        let before = pids(&testbed)[0];
        if round == 1 {
            testbed.pause("iad-1").await.unwrap();
        }
        testbed.restart("iad-1").await.unwrap();
        assert!(!alive(before), "round {round}");
    }
}

#[tokio::test]
async fn asking_for_the_end_over_the_api_reaches_who_runs_the_testbed() {
    let dir = tempfile::tempdir().unwrap();
    let testbed = testbed(&dir, "iad").await;
    let _front = Front::serve(&testbed, Router::new()).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let down = client.post(format!("{}/skein/v1/testbed/down", testbed.api_url())).bearer_auth(fake::TOKEN);
    assert_eq!(down.send().await.unwrap().status(), 202);
    tokio::time::timeout(Duration::from_secs(30), testbed.down_asked()).await.unwrap();
}
